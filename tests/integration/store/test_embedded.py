"""The etcd of a cluster on one machine: it starts, serves, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from elasticps.errors import StoreError, UsageError
from elasticps.store import EmbeddedEtcd, Store, StoreConfig, find_etcd
from elasticps.store import embedded as module


@pytest.fixture(autouse=True)
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def exists(pid: int) -> bool:
    """A zombie whose parent is gone counts as ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def config(etcd: EmbeddedEtcd) -> StoreConfig:
    return StoreConfig(endpoints=(etcd.endpoint,))


async def test_an_embedded_etcd_serves_and_leaves_neither_process_nor_directory(
    temp_dir: Path,
) -> None:
    async with EmbeddedEtcd() as etcd:
        async with Store(config(etcd)) as store:
            await store.put("/a", b"1")
            assert (await store.status()).leader != 0
        pid = etcd.pid
        assert exists(pid)
        assert len(list(temp_dir.iterdir())) == 1
    assert not exists(pid)
    assert list(temp_dir.iterdir()) == []
    await etcd.aclose()


async def test_a_data_directory_of_the_users_own_is_kept(tmp_path: Path) -> None:
    data_dir = tmp_path / "kept"
    async with EmbeddedEtcd(data_dir) as etcd, Store(config(etcd)) as store:
        await store.put("/a", b"1")
    async with EmbeddedEtcd(data_dir) as etcd, Store(config(etcd)) as store:
        found = await store.get("/a")
        assert found is not None
        assert found.value == b"1"


async def test_several_start_at_the_same_time(temp_dir: Path) -> None:
    async def life() -> str:
        async with EmbeddedEtcd() as etcd:
            return etcd.endpoint

    assert len(set(await asyncio.gather(life(), life(), life()))) == 3
    assert list(temp_dir.iterdir()) == []


async def test_a_port_that_another_took_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports = module._free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answers = [[taken.getsockname()[1], free_ports(1)[0]]]
        monkeypatch.setattr(
            module, "_free_ports", lambda count: answers.pop() if answers else free_ports(count)
        )
        async with EmbeddedEtcd() as etcd:
            assert not etcd.endpoint.endswith(f":{taken.getsockname()[1]}")
    assert answers == []


async def test_a_start_that_fails_shows_the_end_of_the_log(tmp_path: Path) -> None:
    data_dir = tmp_path / "broken"
    data_dir.mkdir()
    (data_dir / "etcd").write_text("not a directory")
    with pytest.raises(StoreError, match="etcd exited with") as caught:
        async with EmbeddedEtcd(data_dir):
            pytest.fail("it started")
    assert caught.value.hint is not None
    assert "not a directory" in caught.value.hint


async def test_a_start_that_is_cancelled_leaves_nothing(temp_dir: Path) -> None:
    starting = asyncio.create_task(EmbeddedEtcd().__aenter__())
    while not list(temp_dir.glob("*/etcd")):
        await asyncio.sleep(0.005)
    (directory,) = temp_dir.iterdir()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert list(temp_dir.iterdir()) == []
    assert pids_of(directory) == []


async def test_it_ends_with_a_parent_that_is_killed(temp_dir: Path) -> None:
    program = (
        "import asyncio\n"
        "from elasticps.store import EmbeddedEtcd\n"
        "async def main():\n"
        "    async with EmbeddedEtcd() as etcd:\n"
        "        print(etcd.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temp_dir)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert exists(pid)
        parent.kill()
    while exists(pid):
        await asyncio.sleep(0.01)


async def test_an_interrupt_of_the_terminal_does_not_reach_it() -> None:
    async with EmbeddedEtcd() as etcd:
        assert os.getsid(etcd.pid) == etcd.pid
        assert os.getsid(etcd.pid) != os.getsid(0)


async def test_one_that_ignores_the_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TERM_S", 0.2)
    async with EmbeddedEtcd() as etcd:
        os.kill(etcd.pid, signal.SIGSTOP)
        pid = etcd.pid
    assert not exists(pid)


def test_the_wheels_etcd_is_found() -> None:
    binary = find_etcd()
    assert binary.version >= (3, 4, 0)
    assert os.access(binary.path, os.X_OK)


def fake_etcd(directory: Path, version: str) -> None:
    directory.mkdir(exist_ok=True)
    script = directory / "etcd"
    script.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    script.chmod(0o755)


def test_a_newer_etcd_on_the_path_is_preferred_and_an_older_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    fake_etcd(tmp_path / "bin", "3.10.2")
    found = find_etcd()
    assert (found.path, found.version, found.source) == (
        tmp_path / "bin" / "etcd",
        (3, 10, 2),
        "PATH",
    )
    fake_etcd(tmp_path / "bin", "2.3.8")
    assert find_etcd().source == "wheel"
    fake_etcd(tmp_path / "bin", "nonsense")
    assert find_etcd().source == "wheel"


def test_no_etcd_at_all_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "_from_wheel", lambda: None)
    with pytest.raises(UsageError) as caught:
        find_etcd()
    assert caught.value.hint is not None
    assert "elasticps[embedded]" in caught.value.hint
    assert "etcd-server" in caught.value.hint


def pids_of(directory: Path) -> list[int]:
    """The processes whose command line names ``directory``."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(directory).encode() in command:
                found.append(int(process.name))
    return found
