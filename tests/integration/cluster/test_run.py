"""``elasticps run``, however it ends: its exit code, what it prints, and nothing that it leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.cluster.acts import WAIT_S, Cluster
from tests.integration.cluster.conftest import Script
from tests.support.processes import runs, until

pytestmark = pytest.mark.asyncio(loop_scope="package")

SLEEPER = """
    import subprocess, time

    subprocess.Popen(["sleep", "1000"])
    print("at work")
    time.sleep(1000)
"""


class Command:
    """An ``elasticps run`` with a folder for its temporary files; its processes carry a mark."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self._mark = mark.encode()

    def output(self, stream: str) -> str:
        return (self.folder / stream).read_text()

    async def prints(self, text: str, stream: str = "stdout") -> None:
        await until(lambda: text in self.output(stream), timeout_s=WAIT_S)

    async def exit_code(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    def processes(self) -> list[int]:
        """All that descend from it and live, whoever is their parent by now."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and runs(int(entry.name)):
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:  # it has just ended
                    continue
                if self._mark in environment:
                    found.append(int(entry.name))
        return found

    def names(self) -> list[str]:
        return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in self.processes()]

    def temporary_files(self) -> list[str]:
        """But for torch's cache, which it keeps for the user's next process."""
        found = [path.name for path in (self.folder / "tmp").iterdir()]
        return [name for name in found if not name.startswith("torchinductor_")]

    def sockets(self) -> list[str]:
        """Unix sockets below its folder that anybody holds open."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        return [line for line in lines if str(self.folder) in line]

    def left(self) -> tuple[list[int], list[str], list[str]]:
        return self.processes(), self.sockets(), self.temporary_files()


NOTHING: tuple[list[int], list[str], list[str]] = ([], [], [])


@pytest.fixture
def folders() -> Iterator[list[Path]]:
    """Two with short names: a Unix socket's path has at most 107 bytes."""
    folders = [Path(tempfile.mkdtemp(prefix="run-")) for _ in range(2)]
    for folder in folders:
        (folder / "tmp").mkdir()
    yield folders
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def folder(folders: list[Path]) -> Path:
    return folders[0]


@asynccontextmanager
async def run(folder: Path, script: Path, *options: str) -> AsyncIterator[Command]:
    mark = f"MARK_OF_THIS_TEST={uuid.uuid4()}"
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    name, _, value = mark.partition("=")
    environment[name] = value
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "elasticps", "run", *options, str(script)),
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
    command = Command(process, mark, folder)
    try:
        yield command
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        for pid in command.processes():
            os.kill(pid, signal.SIGKILL)


async def test_success_exits_0_and_leaves_nothing_in_a_lent_etcd_either(
    shared_cluster: Cluster, folder: Path, script: Script
) -> None:
    local = shared_cluster.local
    assert local._etcd is not None
    keys = [item.key for item in (await local.store.list("/elasticps/")).items]
    joining = script("""
        import elasticps

        with elasticps.join() as run:
            print("joined on", run.node)
    """)
    async with run(folder, joining, "--etcd", ",".join(local._etcd.endpoints)) as command:
        assert await command.exit_code() == 0

        assert command.left() == NOTHING
    assert command.output("stdout") == "[n1] joined on n1\n"
    assert "job script-1 succeeded" in command.output("stderr")
    assert [item.key for item in (await local.store.list("/elasticps/")).items] == keys


async def test_script_that_raises_exits_1_shows_its_traceback_once_and_leaves_nothing(
    folder: Path, script: Script
) -> None:
    raising = script("""
        print("so far so good")
        raise RuntimeError("the disk is full")
    """)
    async with run(folder, raising) as command:
        assert await command.exit_code() == 1

        assert command.left() == NOTHING
    everything = command.output("stdout") + command.output("stderr")
    assert "[n1] so far so good\n" in everything
    assert everything.count("Traceback (most recent call last)") == 1
    assert everything.count(f'File "{raising}", line 3, in <module>') == 1
    assert everything.count("\nRuntimeError: the disk is full\n") == 1
    assert "failed: RuntimeError: the disk is full\n" in everything
    assert "elasticps/" not in everything.partition("Traceback")[2]


async def test_signal_ends_the_run_with_its_own_exit_code_and_leaves_nothing(
    folders: list[Path], script: Script
) -> None:
    async with (
        run(folders[0], script(SLEEPER)) as interrupted,
        run(folders[1], script(SLEEPER)) as terminated,
    ):
        for command in (interrupted, terminated):
            await command.prints("[n1] at work")
            names = command.names()
            assert {"etcd", "sleep"} <= set(names)
            # Itself, a daemon, a shard server, a worker.
            assert sum(name.startswith("python") for name in names) >= 4

        interrupted.process.send_signal(signal.SIGINT)
        terminated.process.send_signal(signal.SIGTERM)

        assert await interrupted.exit_code() == 130
        assert await terminated.exit_code() == 143
        for command in (interrupted, terminated):
            assert command.left() == NOTHING
            assert "Traceback" not in command.output("stderr")


async def test_signal_while_the_cluster_starts_leaves_nothing(folder: Path, script: Script) -> None:
    async with run(folder, script(SLEEPER)) as command:
        # Itself, etcd, a daemon, and a shard server that has not said hello yet.
        await until(lambda: len(command.processes()) >= 4, timeout_s=WAIT_S)
        assert "cluster API" not in command.output("stderr")

        command.process.send_signal(signal.SIGINT)

        assert await command.exit_code() == 130
        assert command.left() == NOTHING


async def test_run_that_is_killed_takes_every_process_along(folder: Path, script: Script) -> None:
    sleeper = script("import time; print('at work'); time.sleep(1000)")
    async with run(folder, sleeper) as command:
        await command.prints("[n1] at work")

        command.process.kill()

        assert await command.exit_code() == -signal.SIGKILL
        await until(lambda: not command.processes(), timeout_s=WAIT_S)
        await until(lambda: not command.sockets(), timeout_s=WAIT_S)
        # Nobody is left to remove the folders: the next cleaning of /tmp does.
        assert all(name.startswith("elasticps-") for name in command.temporary_files())
