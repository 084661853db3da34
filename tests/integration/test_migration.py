"""Blocks and the ledger move while workers train: nobody stops, nothing is lost, no bit differs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from elasticps.core.ids import LEDGER, BlockId, PlanEpoch, ServerId
from elasticps.server.parameter_block import ParameterBlock
from elasticps.testing.members import Blueprint, together
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import PullMeta, encode
from elasticps.worker.block_calls import CALLS_IN_FLIGHT
from tests.support.undisturbed import (
    ADAM,
    BLUEPRINTS,
    MOMENTUM,
    assert_none_lost,
    assert_undisturbed,
    begun,
    settled,
)
from tests.support.wire import PATIENCE_S, eventually

Work = Callable[[Rig], Awaitable[None]]


# -- from one server to another -----------------------------------------------------------------


@BLUEPRINTS
@pytest.mark.parametrize("local", [True, False], ids=["unix", "tcp"])
async def test_every_block_moves_to_another_server_while_workers_train(
    blueprint: Blueprint, *, local: bool
) -> None:
    async with Rig(servers=1, start_workers=2, local=local) as rig:
        (source,) = rig.servers
        training = await begun(rig, blueprint)
        target = await rig.start_server(site=False)
        rounds = await training.during(rig.move_all(target))
        assert all(entry.holders == (target,) for entry in rig.entries.values())
        assert all(rig.servers[source].replica(block) is None for block in rig.entries)
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


async def test_blocks_go_back_and_forth_twenty_times_under_load() -> None:
    async def twenty_times() -> None:
        for number in range(20):
            await rig.move_all((one, other)[number % 2])

    async with Rig(servers=2, start_workers=2) as rig:
        one, other = rig.servers
        training = await begun(rig, ADAM)
        rounds = await training.during(twenty_times())
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


async def test_a_server_that_joins_takes_its_share_and_one_that_drains_gives_all_away() -> None:
    blueprint = Blueprint(shapes=((16_000,),), options=MOMENTUM.options)

    async def join_then_drain() -> None:
        joined = await rig.start_server()
        await eventually(lambda: settled(rig))
        held = [block for block, entry in rig.entries.items() if entry.primary == joined]
        assert 5 <= len(held) <= 6
        await training.go_on(2)
        rig.sites = [site for site in rig.sites if site.server != one]
        rig.lead()
        await eventually(lambda: settled(rig) and holds_nothing(rig, one))

    async with Rig(servers=2, start_workers=2) as rig:
        one, _ = rig.servers
        training = await begun(rig, blueprint)
        rounds = await training.during(join_then_drain())
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


def holds_nothing(rig: Rig, server: ServerId) -> bool:
    return all(rig.servers[server].replica(block) is None for block in rig.entries)


# -- in the middle of a round -------------------------------------------------------------------


async def test_a_block_that_moves_between_push_and_commit_takes_the_prepared_round_along() -> None:
    async with Rig(servers=2, start_workers=2) as rig:
        one, other = rig.servers
        training = await begun(rig, ADAM)
        await rig.move_all(one)
        members = training.members
        for rank, member in enumerate(members):
            member.give(ADAM.random(10 + rank))
        await together(*(member.exchange.push() for member in members))
        sent = pushes_taken(rig)
        await rig.move_all(other)
        commit, _ = await together(*(member.exchange.vote() for member in members))
        await rig.move_all(one)
        await together(*(member.exchange.pull(commit) for member in members))
        assert sent > 0
        assert pushes_taken(rig) == 0
        await assert_none_lost(training, 1)
    await assert_undisturbed(training)


def pushes_taken(rig: Rig) -> int:
    """How many pushes reached the replicas that lead now, in their present lives."""
    blocks = [block for block in rig.entries if block != LEDGER]
    return sum(rig.primary(block).parameter_block(block).pushes for block in blocks)


async def test_a_push_that_waits_for_anothers_gradient_follows_its_block() -> None:
    async with Rig(servers=2, start_workers=2) as rig:
        one, other = rig.servers
        training = await begun(rig, ADAM)
        await rig.move_all(one)
        first, second = training.members
        first.give(ADAM.random(10))
        second.give(ADAM.random(11))
        pushing = first.start(first.exchange.push())
        for target in (other, one):
            await eventually(lambda: all(push_waits(rig, block) for block in first.blocks))
            await rig.move_all(target)
        await eventually(lambda: all(push_waits(rig, block) for block in first.blocks))
        assert not pushing.done()
        await second.exchange.push()
        await pushing
        commit, _ = await together(first.exchange.vote(), second.exchange.vote())
        await together(first.exchange.pull(commit), second.exchange.pull(commit))
        await assert_none_lost(training, 1)
    await assert_undisturbed(training)


def push_waits(rig: Rig, block: BlockId) -> bool:
    hosted = rig.primary(block).replica(block)
    return isinstance(hosted, ParameterBlock) and bool(hosted._staging.held)


@pytest.mark.parametrize("fault", ["moves", "dies"])
async def test_more_blocks_than_the_window_that_lack_another_workers_gradient_do_not_lock(
    fault: str,
) -> None:
    count = 2 * CALLS_IN_FLIGHT + 4
    blueprint = Blueprint(shapes=((1024 * count,),), options=MOMENTUM.options)
    async with Rig(servers=2, start_workers=2, replicas=2 if fault == "dies" else 1) as rig:
        training = await begun(rig, blueprint)
        await eventually(lambda: settled(rig))
        other = await rig.start_server(site=fault == "dies")
        first, second = training.members
        for rank, member in enumerate(training.members):
            member.give(blueprint.random(10 + rank))
        pushing = first.start(first.exchange.push())
        waiting = first.blocks[:CALLS_IN_FLIGHT]
        await eventually(lambda: all(push_waits(rig, block) for block in waiting))
        pushing_too = second.start(second.exchange.push())
        if fault == "dies":
            await rig.kill_server(rig.entries[first.blocks[-1]].primary)
        else:
            await rig.move_all(other)
        await asyncio.gather(pushing, pushing_too)
        exchanges = [member.exchange for member in training.members]
        commit, _ = await together(*(exchange.vote() for exchange in exchanges))
        await together(*(exchange.pull(commit) for exchange in exchanges))
        await assert_none_lost(training, 1)
    await assert_undisturbed(training)


async def test_the_ledger_moves_while_workers_wait_for_its_answer() -> None:
    async with Rig(servers=2, start_workers=2) as rig:
        training = await begun(rig, MOMENTUM)
        first, second = training.members
        joiner = rig.worker(MOMENTUM)
        joining = joiner.start(joiner.join())
        first.give(MOMENTUM.random(10))
        second.give(MOMENTUM.random(11))
        await together(first.exchange.push(), second.exchange.push())
        vote = first.start(first.exchange.vote())
        await eventually(lambda: bool(rig.ledger.votes and rig.ledger.joining))
        for server in rig.servers:
            await rig.move(LEDGER, server)
        assert not vote.done()
        assert not joining.done()
        commit = await second.exchange.vote()
        assert await vote == commit
        await joining
        assert joiner.exchange.turn is not None
        assert joiner.exchange.turn.world == 3


async def test_the_ledger_moves_and_who_waits_for_a_push_still_hears_of_a_death() -> None:
    async with Rig(servers=2, start_workers=2) as rig:
        training = await begun(rig, MOMENTUM)
        first, dying = training.members
        step = first.start(first.step(MOMENTUM.random(10)))
        await eventually(lambda: all(push_waits(rig, block) for block in first.blocks))
        for server in rig.servers:
            await rig.move(LEDGER, server)
        assert not step.done()
        await rig.kill(dying)
        await step


# -- epochs and leases --------------------------------------------------------------------------


async def status_of(rig: Rig, server: ServerId, block: int, epoch: int) -> Status:
    async with rig.servers[server].spoken_to(rig.alive[0]) as conn:
        header = Header(
            Kind.PULL,
            job=JOB,
            block=BlockId(block),
            plan_epoch=PlanEpoch(epoch),
            worker=rig.alive[0],
        )
        reply = await conn.request(header, encode(PullMeta(None)), timeout_s=PATIENCE_S)
        return reply.header.status


async def test_a_request_is_served_by_the_primary_under_its_own_epoch_alone() -> None:
    async with Rig(servers=2, start_workers=1, replicas=2) as rig:
        await rig.workers(1, MOMENTUM)
        block = BlockId(1)
        await eventually(lambda: bool(rig.entries[block].in_sync))
        entry = rig.entries[block]
        primary, backup = entry.holders
        assert await status_of(rig, primary, block, entry.epoch) is Status.OK
        assert await status_of(rig, primary, block, entry.epoch - 1) is Status.FENCED
        assert await status_of(rig, primary, block, entry.epoch + 1) is Status.BEHIND
        assert await status_of(rig, backup, block, entry.epoch) is Status.UNKNOWN
        assert await status_of(rig, primary, 99, entry.epoch) is Status.UNKNOWN
        rig.servers[primary].server.lease.deadline = 0.0
        assert await status_of(rig, primary, block, entry.epoch) is Status.NOT_SERVING


async def test_a_server_whose_lease_has_passed_serves_again_when_it_is_renewed() -> None:
    async def pass_and_renew() -> None:
        leases = [server.server.lease for server in rig.servers.values()]
        deadlines = [lease.deadline for lease in leases]
        for lease in leases:
            lease.deadline = 0.0
        stopped_at = training.round
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert training.round <= stopped_at + 1
        for lease, deadline in zip(leases, deadlines, strict=True):
            lease.deadline = deadline
        await training.go_on(2)

    async with Rig(servers=2, start_workers=2) as rig:
        training = await begun(rig, MOMENTUM)
        rounds = await training.during(pass_and_renew())
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


async def test_training_goes_on_when_plans_reach_servers_and_workers_at_any_time() -> None:
    numbers = iter(range(1_000_000))

    def lag() -> float:
        return (next(numbers) * 7919 % 13) * 0.001

    async def move() -> None:
        for number in range(6):
            await rig.move_all(list(rig.servers)[number % 3])

    async with Rig(servers=3, start_workers=2, lag=lag) as rig:
        training = await begun(rig, ADAM)
        rounds = await training.during(move())
        await assert_none_lost(training, rounds)
    await assert_undisturbed(training)


async def test_a_server_that_loses_its_core_while_it_reports_has_nothing_to_make_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost_s = 0.2
    promises = ParameterBlock.promises

    def slow(self: ParameterBlock) -> object:
        if self.id == 1:
            time.sleep(lost_s)
        return promises(self)

    async with Rig(servers=2) as rig:
        (member,) = await rig.workers(1, MOMENTUM)
        monkeypatch.setattr(ParameterBlock, "promises", slow)
        there = next(name for name in rig.servers if name not in rig.entries[BlockId(1)].holders)
        await rig.move(BlockId(1), there)
        now_s = asyncio.get_running_loop().time()
        for server in rig.servers.values():
            assert server.server.table._next_report_s - now_s < lost_s
        await member.step(MOMENTUM.random(1))
