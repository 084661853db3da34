"""Single daemons beside the cluster's own, on the same etcd."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration.cluster.acts import WAIT_S, Cluster
from tests.support.processes import until


class Daemon:
    """One ``elasticps daemon`` process. Made by ``started_daemon``."""

    def __init__(self, process: asyncio.subprocess.Process, log_file: Path) -> None:
        self.process = process
        self._log_file = log_file

    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    async def logs(self, text: str) -> None:
        await until(lambda: text in self.log(), timeout_s=WAIT_S)

    async def exit_code(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()


@asynccontextmanager
async def started_daemon(
    beside: Cluster,
    node: str,
    *,
    cluster: str | None = None,
    env: Mapping[str, str] | None = None,
    **options: object,
) -> AsyncIterator[Daemon]:
    """``options`` are the command's own, with underscores; folders and ports are its own too."""
    local = beside.local
    assert local._etcd is not None
    home = Path(await asyncio.to_thread(_new_folder, beside.directory, node))
    given = {
        "node": node,
        "cluster": cluster or local.keys.cluster,
        "etcd": ",".join(local._etcd.endpoints),
        "http": "127.0.0.1:0",
        "data": "127.0.0.1:0",
        "lease_ttl": 3,
        "state_dir": home,
        "log_dir": home / "logs",
        "runtime_dir": home / "run",
        **options,
    }
    arguments = [f"--{key.replace('_', '-')}={item}" for key, item in given.items()]
    with (home / "daemon.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "elasticps", "daemon", *arguments),
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
        )
    try:
        yield Daemon(process, home / "daemon.log")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _new_folder(directory: Path, node: str) -> Path:
    number = len(list(directory.glob(f"{node}-*")))
    home = directory / f"{node}-{number}"
    home.mkdir()
    return home
