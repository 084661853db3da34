"""Learners and backups while workers train: filled by snapshots, equal bit for bit, taking over."""

from __future__ import annotations

import asyncio

import pytest

from elasticps.core.ids import LEDGER, BlockId, ServerId
from elasticps.core.stream import MAX_OPS_QUEUED
from elasticps.testing.members import Blueprint
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import RigServer
from tests.support.checkers import brought_up, digest
from tests.support.undisturbed import (
    ADAM,
    BLUEPRINTS,
    MOMENTUM,
    WHOLE,
    assert_none_lost,
    assert_undisturbed,
    begun,
    settled,
)
from tests.support.wire import PATIENCE_S, eventually

LARGE = Blueprint(shapes=((1 << 19,),), options={"lr": 0.1, "momentum": 0.9}, block_bytes=4 << 20)
"""One block whose snapshot takes many reads."""


def assert_replicas_equal(rig: Rig) -> None:
    """Every holder of a block has the same state, bit for bit."""
    for block, entry in rig.entries.items():
        replicas = [rig.servers[server].replica(block) for server in entry.holders]
        digests = {digest(brought_up(item, rig.ledger.last)) for item in replicas if item}
        assert (len(replicas), len(digests)) == (2, 1), block


def assert_histories_agree(rig: Rig) -> None:
    """Replicas of one block at equal versions have the same history."""
    for block in rig.entries:
        found = [server.replica(block) for server in rig.servers.values()]
        states = [replica.replication for replica in found if replica is not None]
        seen: dict[int, int] = {}
        for state in states:
            if state.holds_state:
                assert seen.setdefault(state.version, state.history) == state.history


NESTEROV = Blueprint(options={"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": True})
"""An optimizer that writes to the gradient it is given."""


@pytest.mark.parametrize(
    "blueprint", [ADAM, WHOLE, NESTEROV], ids=["adamw", "adafactor", "nesterov"]
)
async def test_backups_equal_their_primary_bit_for_bit(blueprint: Blueprint) -> None:
    async def watch() -> None:
        await eventually(lambda: settled(rig))
        for _ in range(5):
            await training.go_on(1)
            assert_histories_agree(rig)

    async with Rig(servers=3, start_workers=2, replicas=2) as rig:
        training = await begun(rig, blueprint)
        rounds = await training.during(watch())
        await eventually(lambda: settled(rig))
        assert_replicas_equal(rig)
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


@BLUEPRINTS
async def test_training_goes_on_bit_for_bit_when_a_server_dies_and_backups_take_over(
    blueprint: Blueprint,
) -> None:
    async def kill_two() -> None:
        for _ in range(2):
            await eventually(lambda: settled(rig) and all(e.in_sync for e in rig.entries.values()))
            await training.go_on(2)
            await rig.kill_server(rig.entries[LEDGER].primary)
            await rig.start_server()
            await training.go_on(2)
        await eventually(lambda: settled(rig) and all(e.in_sync for e in rig.entries.values()))

    async with Rig(servers=3, start_workers=2, replicas=2) as rig:
        training = await begun(rig, blueprint)
        rounds = await training.during(kill_two())
        await assert_none_lost(training, rounds)
        assert_replicas_equal(rig)
    await assert_undisturbed(training)


@pytest.mark.parametrize("rounds", [5, MAX_OPS_QUEUED + 5], ids=["its ops", "a new snapshot"])
async def test_a_slow_learner_catches_up_while_the_primary_serves(rounds: int) -> None:
    async def move_slowly() -> None:
        for conn in rig.servers[target].connections_from(source):
            conn.pause_reading()
        rig.pin([block], target)
        await training.go_on(rounds)
        assert rig.entries[block].primary == source
        for conn in rig.servers[target].connections_from(source):
            conn.resume_reading()
        await eventually(lambda: rig.is_at(block, target))

    async with Rig(servers=1, start_workers=2) as rig:
        (source,) = rig.servers
        training = await begun(rig, MOMENTUM)
        target = await rig.start_server(site=False)
        first, block = training.members[0].blocks[:2]
        await rig.move(first, target)
        total = await training.during(move_slowly())
        await assert_none_lost(training, total)
    await assert_undisturbed(training)


@pytest.mark.parametrize("fault", ["cut", "dies"])
async def test_a_snapshot_that_breaks_off_costs_nothing(fault: str) -> None:
    async def break_off(target: ServerId) -> None:
        for _ in range(3):
            rig.pin([BlockId(1)], target)
            await something_arrives(rig.servers[target])
            if fault == "cut":
                rig.servers[target].cut()
            else:
                await rig.kill_server(target)
                target = await rig.start_server(site=False)
        await rig.move(BlockId(1), target)
        assert rig.entries[BlockId(1)].holders == (target,)

    async with Rig(servers=1, start_workers=2, local=False) as rig:
        training = await begun(rig, LARGE)
        target = await rig.start_server(site=False)
        rounds = await training.during(break_off(target))
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


async def something_arrives(server: RigServer) -> None:
    """Looks between any two steps of the event loop: some of a payload's bytes may be there."""
    async with asyncio.timeout(PATIENCE_S):
        while not server.receives:
            await asyncio.sleep(0)


async def test_training_goes_on_when_every_connection_is_cut_again_and_again() -> None:
    async def cut() -> None:
        for number in range(10):
            rig.pin([BlockId(1 + number % 3)], *list(rig.servers)[number % 2 :][:2])
            await training.go_on(1)
            for server in rig.servers.values():
                server.cut()
            await asyncio.sleep(0)

    async with Rig(servers=3, start_workers=2, replicas=2) as rig:
        training = await begun(rig, ADAM)
        rounds = await training.during(cut())
        await assert_none_lost(training, rounds)
        await eventually(lambda: settled(rig))
        assert_histories_agree(rig)
    await assert_undisturbed(training)


async def test_a_promised_learner_is_waited_for_until_the_plan_drops_it() -> None:
    async def lose_it() -> None:
        rig.leading = False
        assert rig.servers[source].promises
        dead = rig.servers[target]
        dead.child.stop()
        dead.cut()
        dead.stopped.set()
        stuck_at = training.round
        await eventually(lambda: is_waiting(rig, BlockId(1)))
        assert training.round <= stuck_at + 1
        rig.leading = True
        await rig.kill_server(target)
        await training.go_on(2)

    async with Rig(servers=1, start_workers=2) as rig:
        (source,) = rig.servers
        training = await begun(rig, MOMENTUM)
        target = await rig.start_server(site=False)
        rig.pin([BlockId(1)], target)
        rig.leading = False
        await eventually(lambda: bool(rig.servers[source].promises))
        rounds = await training.during(lose_it())
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


def is_waiting(rig: Rig, block: BlockId) -> bool:
    return len(rig.primary(block).parameter_block(block).replication._waiting) == 2
