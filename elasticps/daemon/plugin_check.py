"""Does a plugin keep its contract? Found out in a process of its own, which may hang or die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

import msgspec

from elasticps.api.choice import parse_choice
from elasticps.api.plugins import discover
from elasticps.daemon.child import signal_name
from elasticps.daemon.process import REAP

START_LIMIT_S = 120.0
"""Until the process has loaded torch and all of ours; that is no fault of the plugin."""
CASE_LIMIT_S = 30.0


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """``passed`` are the cases that held, in order. ``reason`` is empty where all of them did,
    else it names the plugin with its distribution and entry point, the case, and what was wrong.
    """

    passed: tuple[str, ...]
    reason: str = ""


class _Row(msgspec.Struct, frozen=True):
    """A line that the process says; see ``elasticps.testing.check``."""

    begins: str = ""
    broken: str = ""
    passed: str = ""


async def check_plugin(group: str, text: str, *, limit_s: float = CASE_LIMIT_S) -> Findings:
    """Run the quick cases of the plugin that ``text`` chooses; none may take over ``limit_s``.

    Raises OSError where no process can be started.
    """
    # Through REAP, so that it dies with this process; a session of its own is killed as a whole.
    command = (sys.executable, "-m", "elasticps.testing.check", group, text)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", REAP, str(os.getpid()), "--", *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return await _listen(process, _where(group, text), limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _where(group: str, text: str) -> str:
    name = parse_choice(text, "name").name
    return " and ".join(plugin.where for plugin in discover(group) if plugin.name == name)


async def _listen(process: asyncio.subprocess.Process, where: str, limit_s: float) -> Findings:
    assert process.stdout is not None
    begun: list[str] = []

    def failed(reason: str) -> Findings:
        at = begun[-1] if begun else "start"
        return Findings(passed=tuple(begun[:-1]), reason=f"{where}: {at}: {reason}")

    while True:
        limit = limit_s if begun else START_LIMIT_S
        try:
            async with asyncio.timeout(limit):
                line = await process.stdout.readline()
                row = msgspec.json.decode(line, type=_Row) if line else None
                code = 0 if line else await process.wait()
        except msgspec.DecodeError:
            return failed("it writes into what this process reads")
        except TimeoutError:
            return failed(f"did not end within {limit:g} s")
        if row is None:
            how = f"was killed by {signal_name(-code)}" if code < 0 else f"exited with code {code}"
            return failed(f"its process {how}")
        if row.begins:
            begun.append(row.begins)
        elif row.broken:
            return Findings(passed=tuple(begun[:-1]), reason=row.broken)
        else:
            return Findings(passed=tuple(begun))
