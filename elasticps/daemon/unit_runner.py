"""Stands for a worker's systemd unit among the daemon's children: starts it, ends as it ends.

``python -m elasticps.daemon.unit_runner INSTANCE DIRECTORY FAILURE_FILE``, with the ``Launch`` in
``DIRECTORY/INSTANCE.launch``. The unit runs as another user and owes nothing to this one: it calls
at ``DIRECTORY/INSTANCE.sock``, systemd says whether that is it, and it gets what to run together
with this process's own standard streams. The daemon finds in ``DIRECTORY/INSTANCE.process`` who
that was. Nothing that root opens is named by us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import msgspec

from elasticps.wire.peer_process import PeerProcess, peer_process
from elasticps.worker.launch import ScriptFailure
from elasticps.worker.unit import Ended

STOP_GRACE_S = 5.0
MAX_FAILURE_BYTES = 1 << 20
MAX_ENDED_BYTES = 1000
CALL_S = 5.0
FAILED = 1


class UnitRun:
    """One life of a worker's unit. ``code`` is its exit code, negative for a signal."""

    def __init__(self, instance: str, directory: Path, failure_file: Path) -> None:
        self.unit = f"elasticps-worker@{instance}.service"
        self._path = directory / f"{instance}.sock"
        self._launch_file = directory / f"{instance}.launch"
        self._process_file = directory / f"{instance}.process"
        self._failure_file = failure_file
        self._launched = False
        self._stopping = asyncio.Event()
        self._ended: Ended | None = None
        self._launch = b""
        self._failure = os.memfd_create("failure")

    async def run(self) -> int:
        """Start the unit and wait for its end; SIGTERM to this process ends it."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopping.set)
        self._launch = self._launch_file.read_bytes()
        self._launch_file.unlink()
        self._process_file.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            self._path.chmod(0o660)
            listener.listen()
            listener.setblocking(False)
            calls = asyncio.create_task(self._answer(listener))
            try:
                return await self._to_its_end()
            finally:
                calls.cancel()
                self._path.unlink(missing_ok=True)
                self._process_file.unlink(missing_ok=True)

    async def _to_its_end(self) -> int:
        start = await _systemctl("start", "--wait", self.unit)
        stop = asyncio.create_task(self._stop())
        _, said = await start.communicate()
        stop.cancel()
        self._keep_failure()
        if self._ended is None:
            self._ended = await self._asked()
        if self._ended.result != "success":
            await (await _systemctl("reset-failed", self.unit)).wait()
        return self._code(self._ended, said.decode(errors="replace").strip())

    def _code(self, ended: Ended, said: str) -> int:
        if not self._launched:
            what = said.splitlines()[0] if said else "it ended before it called"
            how = f"{ended.result} {ended.status}".strip()
            self._fail(f"{self.unit} could not be started: {what} ({how})")
            return FAILED
        if ended.code in ("killed", "dumped"):
            return -signal.Signals[f"SIG{ended.status}"].value
        return int(ended.status) if ended.status.isdigit() else 0

    def _fail(self, why: str) -> None:
        failure = ScriptFailure(why, "")
        self._failure_file.write_bytes(msgspec.json.encode(failure))

    def _keep_failure(self) -> None:
        """What the script wrote of its failure, if it was able to write all of it."""
        content = os.pread(self._failure, MAX_FAILURE_BYTES, 0)
        with contextlib.suppress(msgspec.MsgspecError):
            msgspec.json.decode(content, type=ScriptFailure)
            self._failure_file.write_bytes(content)

    async def _stop(self) -> None:
        """Once asked to. By signals, for a systemd job would wait for the daemon's own stop."""
        await self._stopping.wait()
        for whom, number in (("main", "SIGTERM"), ("all", "SIGKILL")):
            await (
                await _systemctl("kill", f"--kill-who={whom}", f"--signal={number}", self.unit)
            ).wait()
            await asyncio.sleep(STOP_GRACE_S)

    async def _asked(self) -> Ended:
        """How the unit ended, by systemd's word: it could not say so itself."""
        told = await self._show("Result", "ExecMainCode", "ExecMainStatus")
        code = {"2": "killed", "3": "dumped"}.get(told.get("ExecMainCode", ""), "exited")
        status = told.get("ExecMainStatus", "")
        if code != "exited" and status.isdigit():
            status = signal.Signals(int(status)).name.removeprefix("SIG")
        return Ended(code=code, status=status, result=told.get("Result", "unknown"))

    async def _show(self, *names: str) -> dict[str, str]:
        wanted = (f"--property={name}" for name in names)
        show = await _systemctl("show", self.unit, *wanted)
        out, _ = await show.communicate()
        return dict(line.split("=", 1) for line in out.decode().splitlines() if "=" in line)

    # -- the unit's calls -----------------------------------------------------------------------

    async def _answer(self, listener: socket.socket) -> None:
        """One after the other: of others' calls none may hold up the unit's for long."""
        loop = asyncio.get_running_loop()
        while True:
            channel, _ = await loop.sock_accept(listener)
            with channel, contextlib.suppress(OSError, TimeoutError, msgspec.MsgspecError):
                async with asyncio.timeout(CALL_S):
                    await self._talk(channel)

    async def _talk(self, channel: socket.socket) -> None:
        caller = peer_process(channel)
        loop = asyncio.get_running_loop()
        told = await self._show("MainPID", "ControlPID")
        if str(caller.pid) == told.get("MainPID") and not self._launched:
            self._tell_daemon(caller)
            socket.send_fds(channel, [self._launch[:1]], [1, 2, self._failure])
            await loop.sock_sendall(channel, self._launch[1:])
            self._launched = True
        elif str(caller.pid) == told.get("ControlPID"):
            said = await loop.sock_recv(channel, MAX_ENDED_BYTES)
            self._ended = msgspec.json.decode(said, type=Ended)

    def _tell_daemon(self, worker: PeerProcess) -> None:
        """Who will say hello to it as this worker: that process, and no other unit's."""
        number = os.open(self._process_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(msgspec.json.encode(worker))


async def _systemctl(*args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "systemctl",
        "--no-ask-password",
        *args,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def main() -> int:
    """End as the unit's process did: with its exit code, or by the same signal."""
    instance, directory, failure_file = sys.argv[1:]
    code = asyncio.run(UnitRun(instance, Path(directory), Path(failure_file)).run())
    if code >= 0:
        return code
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 128 - code


if __name__ == "__main__":
    sys.exit(main())
