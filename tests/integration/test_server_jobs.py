"""Jobs that a shard server cannot serve, or serves no more: workers are told, nothing stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from elasticps.core.ids import Round
from elasticps.errors import JobFailed
from elasticps.testing.members import Blueprint, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB
from elasticps.wire.control_messages import DropJob
from tests.support.distributions import Install, install
from tests.support.wire import eventually

__all__ = ["install"]

BLUEPRINT = Blueprint(options={"lr": 0.1, "momentum": 0.9})


async def in_sync(rig: Rig) -> None:
    await eventually(lambda: all(len(entry.holders) == 2 for entry in rig.entries.values()))


# -- a job that cannot be served ----------------------------------------------------------------

PLUGIN = """
    import torch
    from elasticps.api.optimizer import TorchOptimizer

    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            if self.param_groups[0]["lr"] == 0.5:
                raise ZeroDivisionError("the optimizer is broken")
            return super().step(closure)

    class CannotBeMade(TorchOptimizer):
        def create(self, groups, options):
            if not groups[0]["params"][0].requires_grad:
                raise RuntimeError("not on a server")
            return super().create(groups, options)

    broken = TorchOptimizer(Broken)
    cannot_be_made = CannotBeMade(torch.optim.SGD)
"""


@pytest.fixture
def plugins(install: Install) -> None:
    targets = {
        "broken-step": "broken_plugin:broken",
        "cannot-be-made": "broken_plugin:cannot_be_made",
    }
    install("broken-plugin", "broken_plugin", PLUGIN, {"elasticps.optimizers": targets})


@pytest.mark.usefixtures("plugins")
async def test_an_optimizer_that_cannot_be_made_on_a_server_fails_its_job_with_the_reason() -> None:
    async with Rig(servers=2) as rig:
        member = rig.worker(Blueprint(optimizer="cannot-be-made"))
        with pytest.raises(JobFailed, match="RuntimeError: not on a server"):
            await member.join()


async def test_a_plugin_that_a_server_lacks_fails_its_job_with_the_reason() -> None:
    async with Rig(servers=2) as rig:
        rig.describe(msgspec.structs.replace(BLUEPRINT.model, optimizer="sdg"))
        with pytest.raises(JobFailed, match=r"(?s)no plugin named 'sdg'.*did you mean sgd"):
            await rig.worker(BLUEPRINT).join()


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("replicas", [1, 2])
async def test_an_optimizer_that_raises_fails_its_job_with_the_reason(replicas: int) -> None:
    blueprint = Blueprint(optimizer="broken-step")
    async with Rig(servers=2, start_workers=2, replicas=replicas) as rig:
        members = await rig.workers(2, blueprint)
        await together(*(member.step(blueprint.random(1)) for member in members))
        hyper = [{"lr": 0.5}]
        steps = [member.start(member.step(blueprint.random(1), hyper=hyper)) for member in members]
        for task in steps:
            with pytest.raises(JobFailed, match="ZeroDivisionError: the optimizer is broken"):
                await task


async def test_a_state_that_the_optimizer_cannot_use_fails_its_job_with_the_reason() -> None:
    blueprint = Blueprint(optimizer="adamw", options={"lr": 0.1})
    async with Rig() as rig:
        (member,) = await rig.workers(1, blueprint)
        states = [item.initial() for item in member.exchange._memory]
        foreign = [
            (msgspec.structs.replace(meta, scalars={"momentum_buffer": None}), payload)
            for meta, payload in states
        ]
        await member.exchange.initialize(foreign, Round(0))
        what = r"AdamW: step\(\) failed on \d blocks from \d on: KeyError"
        with pytest.raises(JobFailed, match=what):
            await member.step(blueprint.random(1))


# -- a job that is over -------------------------------------------------------------------------


@pytest.mark.parametrize("waiting_for", ["a vote", "another gradient", "a backup"])
async def test_a_job_that_is_dropped_leaves_nothing_and_nobody_waiting(waiting_for: str) -> None:
    async with Rig(servers=2, start_workers=2, replicas=2) as rig:
        members = await rig.workers(2, BLUEPRINT)
        await in_sync(rig)
        one = members[0]
        for member in members:
            member.give(BLUEPRINT.random(1))
        await WAITS[waiting_for](rig, members)
        streams = [task for task in asyncio.all_tasks() if "stream" in task.get_name()]
        assert len(streams) == len(rig.entries)
        answered = [*one.client._pool._connections.values()]
        for server in rig.servers.values():
            server.child.tell(DropJob(JOB))
        await eventually(lambda: all(task.done() for task in streams))
        await eventually(lambda: all(not c._in_flight._pending for c in answered))
        for server in rig.servers.values():
            assert server.server.table.load().blocks == 0


async def _wait_for_vote(rig: Rig, members: list[Member]) -> None:
    await together(*(member.exchange.push() for member in members))
    members[0].start(members[0].exchange.vote())
    await eventually(lambda: len(rig.ledger.votes) == 1)


async def _wait_for_gradient(rig: Rig, members: list[Member]) -> None:
    one = members[0]
    one.start(one.exchange.push())
    blocks = [rig.primary(block).parameter_block(block) for block in one.blocks]
    await eventually(lambda: all(one.id in block._staging.held for block in blocks))


async def _wait_for_backup(rig: Rig, members: list[Member]) -> None:
    for server in rig.servers:
        for receiver in rig.servers.values():
            for conn in receiver.connections_from(server):
                conn.pause_reading()
    for member in members:
        member.start(member.exchange.push())
    blocks = [rig.primary(block).parameter_block(block) for block in members[0].blocks]
    await eventually(lambda: all(len(b.replication._waiting) == len(members) for b in blocks))


WAITS: dict[str, Callable[[Rig, list[Member]], Any]] = {
    "a vote": _wait_for_vote,
    "another gradient": _wait_for_gradient,
    "a backup": _wait_for_backup,
}
