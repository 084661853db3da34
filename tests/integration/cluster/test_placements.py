"""Placements against real daemons: load-aware moves what is hot, and a broken one harms nobody."""

from __future__ import annotations

import asyncio
import signal

import pytest

from elasticps.api.plugins import OPTIMIZERS, PLACEMENTS
from elasticps.core.blocks import LEDGER_BYTES
from elasticps.core.ids import NodeId, server_of
from elasticps.core.placement import Site, place
from tests.integration.cluster.acts import LOOK_S, WAIT_S, Cluster, started
from tests.integration.cluster.conftest import Script
from tests.support.distributions import Install, install

__all__ = ["install"]

BLOCKS, BLOCK_BYTES = 8, 4096
DELAY_S = 0.01

SLOW_SGD = """
    import time
    import torch
    from elasticps import TorchOptimizer

    class SlowSGD(torch.optim.SGD):
        def __init__(self, params, lr=0.01, delay=0.0):
            super().__init__(params, lr=lr)
            for group in self.param_groups:
                group.setdefault("delay", delay)

        def step(self, closure=None):
            time.sleep(max(group["delay"] for group in self.param_groups))
            return super().step(closure)

    plugin = TorchOptimizer(SlowSGD)
"""

TRAIN = """
    import sys, time
    import torch
    import elasticps

    goal, hot = sys.argv[1], [int(number) for number in sys.argv[2].split(",")]
    delay = float(sys.argv[3])
    with elasticps.join() as run:
        torch.manual_seed(0)
        model = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(1024)) for _ in range(8))
        groups = [{"params": [item], "delay": delay if index in hot else 0.0}
                  for index, item in enumerate(model)]
        optimizer = run.optimizer(model, "slow-sgd", groups=groups, lr=0.01)
        import pathlib
        while not pathlib.Path(goal).exists():
            optimizer.zero_grad()
            loss = sum(item.pow(2).sum() for item in model)
            loss.backward()
            optimizer.step()
            time.sleep(0.02)
"""

BROKEN = """
    import time
    from elasticps import Placement

    class Raises(Placement):
        def propose(self, situation):
            raise RuntimeError("lost the map")

    class Hangs(Placement):
        def propose(self, situation):
            time.sleep(3600)
"""


def led_at_first(node: str) -> list[int]:
    """The parameters whose block the first plan gives to ``node``, of two nodes alike."""
    servers = [server_of(NodeId(name), "0") for name in ("n1", "n2")]
    sites = [Site(server=each, node=NodeId(each[:2])) for each in servers]
    homes = place([LEDGER_BYTES, *[BLOCK_BYTES] * BLOCKS], sites)
    return [block - 1 for block, home in enumerate(homes) if block and home[0][:2] == node]


async def hot_led(cluster: Cluster) -> dict[str, int]:
    """How many blocks that take long to apply each node leads, as it measures itself."""
    times = {}
    for node in (await cluster.status()).nodes:
        told = await cluster.get("/api/v1/load", node.http)
        rows = [row for server in told["servers"] for row in server["load"]["hot"]]
        times[node.node] = [row[2]["apply_s_per_s"] for row in rows]
    longest = max((seconds for each in times.values() for seconds in each), default=0.0)
    return {node: sum(seconds > longest / 4 for seconds in each) for node, each in times.items()}


@pytest.mark.long
async def test_hot_blocks_move_to_the_server_that_has_time_while_the_job_trains(
    tmp_path, install: Install, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    entry_points = {OPTIMIZERS: {"slow-sgd": "slow:plugin"}}
    monkeypatch.setenv("PYTHONPATH", str(install("slow-sgd", "slow", SLOW_SGD, entry_points)))
    goal = tmp_path / "goal"
    hot = led_at_first("n1")
    assert len(hot) == BLOCKS // 2
    async with started(2, tmp_path) as cluster:
        job = await cluster.submit(
            script(TRAIN),
            *(goal, ",".join(map(str, hot)), DELAY_S),
            max_workers=1,
            replicas=1,
            block_bytes=BLOCK_BYTES,
            placement="load-aware:settle_s=3.0",
            audit=True,
        )
        await job.until(lambda now: now.round, "trains")
        assert (await job.look()).movement.blocks == 0

        async with asyncio.timeout(WAIT_S):
            while await hot_led(cluster) != {"n1": 2, "n2": 2}:
                await asyncio.sleep(LOOK_S)
        await job.goes_on(50)
        assert await hot_led(cluster) == {"n1": 2, "n2": 2}
        assert (await job.look()).movement.blocks >= 2

        goal.touch()
        ended = await job.ended()
    assert ended.state == "SUCCEEDED"
    assert (ended.verdict.lost, ended.verdict.duplicated) == (0, 0)
    assert ended.verdict.acknowledged > 0


@pytest.mark.long
async def test_a_broken_placement_is_told_in_the_status_and_balanced_places_the_blocks(
    tmp_path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_points = {PLACEMENTS: {"raises": "broken:Raises", "hangs": "broken:Hangs"}}
    monkeypatch.setenv("PYTHONPATH", str(install("acme", "broken", BROKEN, entry_points)))
    async with started(2, tmp_path) as cluster:
        leader = (await cluster.status()).leader
        jobs = {
            "RuntimeError: lost the map": await cluster.train(max_workers=1, placement="raises"),
            "no answer within 10 s": await cluster.train(max_workers=1, placement="hangs"),
        }
        for reason, job in jobs.items():
            told = f"is not heard, balanced is used meanwhile: {reason}"
            await job.until(lambda now: told in now.reason, f"says {told!r}")  # noqa: B023
            await job.goes_on(5)

        await cluster.add_node("n3")

        for job in jobs.values():
            await job.lies_on("n1", "n2", "n3")
            await job.goes_on(5)
        assert (await cluster.status()).leader == leader
        for job in jobs.values():
            assert (await job.finish(5)).state == "SUCCEEDED"


@pytest.mark.long
async def test_a_new_leader_goes_on_with_the_placement_of_the_old_one(
    tmp_path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        from elasticps import Placement

        class OnOne(Placement):
            def propose(self, situation):
                first = min(site.server for site in situation.sites)
                return {block.block: [first] for block in situation.blocks}
    """
    entry_points = {PLACEMENTS: {"on-one": "one:OnOne"}}
    monkeypatch.setenv("PYTHONPATH", str(install("acme", "one", source, entry_points)))
    async with started(3, tmp_path) as cluster:
        job = await cluster.train(max_workers=1, replicas=1, placement="on-one")
        await job.lies_on("n1")
        leader = (await cluster.status()).leader
        assert leader is not None
        cluster.signal(leader, signal.SIGTERM)  # it drains, and leaves in order
        assert await cluster.exit_code(leader) == 0

        await job.lies_on("n2" if leader == "n1" else "n1")
        await job.goes_on(5)
        assert (await job.finish(5)).state == "SUCCEEDED"
