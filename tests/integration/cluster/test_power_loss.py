"""A whole cluster is killed; another goes on from the checkpoint to the bits of an undisturbed one.

Its etcd is killed too, and comes back with its data, or is lost with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from elasticps.checkpoint.directory import complete
from elasticps.store import Store
from tests.integration.cluster.acts import LOOK_S, SCRIPTS, Cluster, Job, kill, started
from tests.support.etcd import EtcdServer, started_server
from tests.support.processes import runs, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with ExitStack() as stack:
        yield started_server(stack, tmp_path / "etcd")


@pytest.fixture
def new_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with ExitStack() as stack:
        yield started_server(stack, tmp_path / "new-etcd")


class Regularized:
    """scripts/regularized.py on clusters, for so many rounds by so many workers."""

    def __init__(self, directory: Path, *, rounds: int, workers: int, wait_at: int = -1) -> None:
        self.saved = directory / "saved"
        self._directory = directory
        self._options: tuple[object, ...] = (rounds, directory / "gate", "--wait-at", wait_at)
        if workers == 1:
            self._options += ("--as-seeded",)
        self._wishes: dict[str, Any] = {"start_workers": workers, "max_workers": workers}

    def let_go(self) -> None:
        (self._directory / "gate").touch()

    async def begin(self, cluster: Cluster, name: str = "unused", **wishes: Any) -> Job:
        script, results = SCRIPTS / "regularized.py", self._directory / name
        wishes = {"block_bytes": 4096, **self._wishes, **wishes}
        return await cluster.submit(script, results, *self._options, **wishes)

    async def finish(self, cluster: Cluster, name: str, **wishes: Any) -> dict[str, torch.Tensor]:
        ended = await (await self.begin(cluster, name, **wishes)).ended()
        assert ended.state == "SUCCEEDED", ended.reason
        return load_file(self._directory / name)

    async def is_saved(self, beyond: int = 0) -> None:
        """Wait for a checkpoint of a later round."""
        await until(
            lambda: any(number > beyond for number, _ in complete(self.saved)), timeout_s=60
        )


async def kill_everything(cluster: Cluster) -> None:
    """Daemons, shard servers and workers, all by SIGKILL."""
    nodes = (await cluster.status()).nodes
    children = [child.pid for node in nodes for child in node.children if child.pid]
    for node in cluster.local.nodes.values():
        kill(node.process.pid)
    for pid in children:
        if runs(pid):
            kill(pid)
    await until(lambda: not any(map(runs, children)), timeout_s=60)


async def registrations_run_out(cluster: Cluster, etcd: EtcdServer) -> None:
    """Those of the dead: a test that looks for a node is to find the living one."""
    async with Store(etcd.config()) as store:
        for name in cluster.local.nodes:
            while await store.get(cluster.local.keys.node(name)):
                await asyncio.sleep(LOOK_S)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, item in one.items() if not torch.equal(item, other[name])] == []


async def test_a_cluster_that_lost_its_power_goes_on_with_its_etcd_to_the_same_bits(
    shared_cluster: Cluster, own_etcd: EtcdServer, tmp_path: Path
) -> None:
    training = Regularized(tmp_path, rounds=16, workers=2, wait_at=8)
    saving: dict[str, Any] = {"checkpoint_dir": str(training.saved), "checkpoint_every": 3}
    async with started(1, tmp_path, etcd=own_etcd.config(), workers_per_node=2) as cluster:
        job = await training.begin(cluster, **saving)
        await training.is_saved(beyond=5)  # the main worker has pushed for round 9, or is about to
        await kill_everything(cluster)
        await asyncio.to_thread(own_etcd.kill)
        training.let_go()
        straight = asyncio.create_task(training.finish(shared_cluster, "straight"))
        own_etcd.start()
        await own_etcd.ready()
        await registrations_run_out(cluster, own_etcd)
        again = tmp_path / "again"
        again.mkdir()
        # Within the first cluster, which deletes its keys at its end.
        name = cluster.local.keys.cluster
        wishes: dict[str, Any] = {"etcd": own_etcd.config(), "workers_per_node": 2}
        async with started(1, again, cluster=name, **wishes) as cluster:
            lost = await Job(cluster, job.name, tmp_path).ended()
            assert "resume from the last checkpoint" in lost.reason
            resumed = await training.finish(
                cluster, "resumed", resume=str(training.saved), **saving
            )
    assert_same(resumed, await straight)
    assert complete(training.saved)[0][0] == 15


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", [1, 2])
async def test_killed_again_and_again_and_with_etcd_lost_it_ends_with_the_same_bits(
    workers: int,
    shared_cluster: Cluster,
    own_etcd: EtcdServer,
    new_etcd: EtcdServer,
    tmp_path: Path,
) -> None:
    training = Regularized(tmp_path, rounds=150, workers=workers)
    training.let_go()
    saving: dict[str, Any] = {"checkpoint_dir": str(training.saved), "checkpoint_every": 7}
    straight = await training.finish(shared_cluster, "straight")
    for life, etcd in enumerate((own_etcd, own_etcd, new_etcd)):
        folder = tmp_path / f"life-{life}"
        folder.mkdir()
        async with started(2, folder, etcd=etcd.config()) as cluster:
            if life:
                saving["resume"] = str(training.saved)
            newest = complete(training.saved)
            await training.begin(cluster, **saving)
            await training.is_saved(beyond=newest[0][0] + 14 if newest else 14)
            await kill_everything(cluster)
    async with started(2, tmp_path / "life-2", etcd=new_etcd.config()) as cluster:
        resumed = await training.finish(cluster, "resumed", **saving)
    assert_same(resumed, straight)
