"""An etcd that an operator puts back to an old state: what was promised since is gone from it.

Then no daemon may go on by either of the two histories. They end and say so; started again they
tell each job that ran how to go on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from elasticps.checkpoint.directory import newest
from elasticps.checkpoint.snapshot import read
from elasticps.cli import answers
from elasticps.daemon.main import ROLLED_BACK
from elasticps.store import Store
from tests.integration.cluster.acts import LOOK_S, Cluster, Job, Training, kill, started
from tests.support.etcd import EtcdServer, started_server
from tests.support.processes import runs, until

NODES = ("n1", "n2")


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with ExitStack() as stack:
        yield started_server(stack, tmp_path / "etcd")


@pytest.fixture
def told_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What all daemons say to the service manager."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as told:
        told.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield told


@asynccontextmanager
async def stopped(server: EtcdServer) -> AsyncIterator[None]:
    """Killed, and started again at the end: no lease runs out meanwhile."""
    await asyncio.to_thread(server.kill)
    yield
    server.start()
    await server.ready()


async def test_daemons_end_when_etcd_is_put_back_and_started_again_offer_the_last_checkpoint(
    own_etcd: EtcdServer, tmp_path: Path, told_to_systemd: socket.socket
) -> None:
    copy, root = tmp_path / "backup", tmp_path / "checkpoints"
    async with started(2, tmp_path, etcd=own_etcd.config()) as cluster:
        job = await cluster.train(max_workers=1, checkpoint_dir=str(root), checkpoint_every=1)
        await job.goes_on()
        await job.until(has_two_copies, "has two copies of each block")
        async with stopped(own_etcd):
            own_etcd.back_up(copy)
        known = (await cluster.local.store.list(cluster.local.keys.root)).revision
        await job.goes_on()
        kill(await cluster.shard_server_pid("n2"))
        await job.goes_on()
        await job.until(has_two_copies, "has two copies of each block again")
        checkpoint = read(newest(root)).round
        pids = await processes(cluster, job)
        everything(told_to_systemd)

        async with stopped(own_etcd):
            own_etcd.put_back(copy)

        assert [await cluster.exit_code(node) for node in NODES] == [ROLLED_BACK, ROLLED_BACK]
        for node in NODES:
            log = cluster.log_of(node)
            assert "etcd's data is older than what this node has already seen (revision" in log
            assert "stop the daemons on all nodes, then start them again" in log
            assert "Traceback" not in log
        told = [text for text in everything(told_to_systemd) if "STATUS=etcd's data is" in text]
        assert len(told) == 2
        await until(lambda: not any(map(runs, pids)))
        keys = cluster.local.keys
        async with Store(own_etcd.config()) as store:
            stored = (await store.list(keys.job(job.name))).items
            # A report may be the write that tells its daemon; it goes with the daemon's lease.
            kept = [item for item in stored if not item.lease]
            assert kept
            assert all(item.mod_revision <= known for item in kept)
            # Registrations come back too, of daemons that are dead; their leases run out.
            while any([await store.get(keys.node(node)) for node in NODES]):
                await asyncio.sleep(LOOK_S)

        # Within the first cluster, which deletes its keys at its end.
        again = tmp_path / "again"
        again.mkdir()
        async with started(2, again, etcd=own_etcd.config(), cluster=keys.cluster) as cluster:
            ended = await Job(cluster, job.name, job.directory).ended()
            assert ended.state == "FAILED"
            lost = "blocks are lost: the shard servers of n1, n2 died"
            assert lost in ended.reason
            assert "resume from the last checkpoint: elasticps submit --resume" in ended.reason
            resumed = await cluster.train(max_workers=1, resume=str(root))
            assert (await resumed.finish()).state == "SUCCEEDED"
            assert resumed.goal > checkpoint


def everything(told: socket.socket) -> list[str]:
    """All messages that wait on it."""
    messages = []
    with suppress(BlockingIOError):
        while True:
            messages.append(told.recv(4096).decode())
    return messages


async def processes(cluster: Cluster, job: Training) -> list[int]:
    servers = [await cluster.shard_server_pid(node) for node in NODES]
    return [*servers, *await job.worker_pids()]


def has_two_copies(look: answers.Job) -> bool:
    return look.under_replicated == 0 and look.pending_moves == 0
