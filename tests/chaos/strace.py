"""System calls of running processes that fail, by strace."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from elasticps.store.embedded import ending_with_parent
from tests.chaos.cluster import ChaosError, Cluster


def can_attach() -> bool:
    """Whether it is installed, and may trace a process that it did not start."""
    if shutil.which("strace") is None:
        return False
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as traced,
        subprocess.Popen(
            ["strace", "-p", str(traced.pid)], stderr=subprocess.PIPE, text=True
        ) as strace,
    ):
        assert strace.stderr is not None
        assert traced.stdin is not None
        told = strace.stderr.readline()
        traced.stdin.close()
    return "attached" in told


@asynccontextmanager
async def failing(cluster: Cluster, pids: Sequence[int], what: str) -> AsyncIterator[Path]:
    """Within the block system calls of these processes fail as ``what`` says: see its -e inject.

    Yields its log, where each that has failed is marked as INJECTED.
    """
    program = shutil.which("strace")
    assert program is not None
    log = cluster.directory / "strace"
    call = what.partition(":")[0]
    attach = [word for pid in pids for word in ("-p", str(pid))]
    command = [program, "-f", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={what}"]
    strace = await asyncio.create_subprocess_exec(
        *ending_with_parent(*command, *attach), stderr=asyncio.subprocess.DEVNULL
    )

    def traces() -> bool:
        if strace.returncode is not None:
            raise ChaosError(f"strace ended by itself with {strace.returncode}")
        return all(map(is_traced, pids))

    try:
        await cluster.until(traces, f"strace traces {pids}")
        yield log
        traces()
    finally:
        with suppress(ProcessLookupError):
            strace.send_signal(signal.SIGINT)
        await strace.wait()


def is_traced(pid: int) -> bool:
    """All of its threads are, if any is left."""
    try:
        texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return all("TracerPid:\t0\n" not in text for text in texts)
