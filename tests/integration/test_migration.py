"""Blocks and the ledger move while workers train: nobody stops, nothing is lost, no bit differs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import torch

from elasticps.core.audit import Verdict
from elasticps.core.ids import LEDGER, BlockId, PlanEpoch, ServerId
from elasticps.core.stream import MAX_OPS_QUEUED
from elasticps.server.parameter_block import ParameterBlock
from elasticps.testing.members import Blueprint, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB, RigServer
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import PullMeta, encode
from elasticps.worker.block_calls import CALLS_IN_FLIGHT
from tests.support.checkers import brought_up, digest
from tests.support.wire import PATIENCE_S, eventually

MOMENTUM = Blueprint(options={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
ADAM = Blueprint(optimizer="adamw", options={"lr": 0.01, "amsgrad": True})
WHOLE = Blueprint(optimizer="adafactor", options={"lr": 0.01})
LARGE = Blueprint(shapes=((1 << 19,),), options={"lr": 0.1, "momentum": 0.9}, block_bytes=4 << 20)
"""One block whose snapshot takes many reads."""

BLUEPRINTS = pytest.mark.parametrize(
    "blueprint", [MOMENTUM, ADAM, WHOLE], ids=["sgd", "adamw", "adafactor"]
)
Work = Callable[[Rig], Awaitable[None]]


@dataclass(slots=True)
class Training:
    """Two workers' rounds, to the same last one, with gradients that depend on the round alone."""

    blueprint: Blueprint
    members: list[Member]
    last_round: float = float("inf")

    @property
    def round(self) -> int:
        """The round under way."""
        turn = self.members[0].exchange.turn
        assert turn is not None
        return turn.round

    async def _train(self, rank: int) -> None:
        member = self.members[rank]
        while (turn := member.exchange.turn) is not None and turn.round <= self.last_round:
            await member.step(self.blueprint.random(10 * turn.round + rank))

    async def go_on(self, rounds: int) -> None:
        goal = self.round + rounds
        await eventually(lambda: self.round >= goal)

    async def during(self, work: Awaitable[None]) -> int:
        """Train until ``work`` is done, and two rounds longer. Returns how many it took."""
        first = self.round
        async with asyncio.TaskGroup() as tasks:
            for rank in range(len(self.members)):
                tasks.create_task(self._train(rank))
            await self.go_on(2)
            await work
            self.last_round = self.round + 2
        return self.round - first

    async def verdict(self) -> Verdict:
        total = Verdict()
        for member in self.members:
            total = total.plus(await member.exchange.audit())
        return total


async def begun(rig: Rig, blueprint: Blueprint) -> Training:
    return Training(blueprint, await rig.workers(2, blueprint))


async def undisturbed(blueprint: Blueprint, rounds: int) -> list[torch.Tensor]:
    """The values after ``rounds`` of the same training in which nothing moves."""
    async with Rig(servers=1, start_workers=2) as rig:
        training = await begun(rig, blueprint)
        training.last_round = rounds
        await together(training._train(0), training._train(1))
        return training.members[0].values()


async def assert_undisturbed(training: Training) -> None:
    """The values are, bit for bit, those of the same training in which nothing moves."""
    rounds = training.round - 1
    one, other = (member.values() for member in training.members)
    wanted = await undisturbed(training.blueprint, rounds)
    for mine, its, value in zip(one, other, wanted, strict=True):
        assert torch.equal(mine, value)
        assert torch.equal(its, value)


async def assert_none_lost(training: Training, rounds: int) -> None:
    verdict = await training.verdict()
    blocks = len(training.members[0].blocks)
    assert verdict == Verdict(acknowledged=2 * blocks * rounds)


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


def settled(rig: Rig) -> bool:
    return not any(entry.learners for entry in rig.entries.values())


def holds_nothing(rig: Rig, server: ServerId) -> bool:
    return all(rig.servers[server].replica(block) is None for block in rig.entries)


# -- backups ------------------------------------------------------------------------------------


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


# -- snapshots ----------------------------------------------------------------------------------


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
