"""Some hundred rounds in which workers, blocks and servers come and go at random, by seed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
import torch

from elasticps.core.ids import BlockId, ServerId
from elasticps.errors import JobFailed
from elasticps.testing.members import Blueprint, Member
from elasticps.testing.rig import Rig
from elasticps.wire.frame import Kind
from elasticps.wire.messages import PushMeta, encode
from elasticps.wire.tensors import bytes_of
from elasticps.worker.client import Call
from tests.support.checkers import OneHot, OneHotSet, brought_up, digest
from tests.support.wire import eventually

PLACES = 1024
BLOCKS = 4
MOST_WORKERS = 4
ROUNDS = 120
COUNTED = Blueprint(
    shapes=((PLACES,),) * BLOCKS,
    options={"lr": 1.0},
    dtype=torch.float64,
    zeros=True,
    block_bytes=8 * PLACES,
)


ACTS = "move", "move all", "join", "retire", "death", "eviction", "cut", "server"
WITH_BACKUPS = *ACTS, "both"


class RandomRun:
    """Workers that train, and everything that may happen to them meanwhile."""

    def __init__(self, rig: Rig, seed: int, replicas: int) -> None:
        self.one_hots = OneHotSet(PLACES)
        self.left: list[Member] = []
        self._rig = rig
        self._replicas = replicas
        self._acts = Random(f"{seed}:acts")
        self._workers = Random(f"{seed}:workers")
        self._errors: list[BaseException] = []
        self._present: list[Member] = []
        self._retiring: set[Member] = set()
        self._last_round: float = float("inf")
        self.happened: dict[str, int] = {}

    # -- workers --------------------------------------------------------------------------------

    def start_worker(self) -> None:
        member = self._rig.worker(COUNTED)
        self._present.append(member)
        member.start(self._live(member)).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def _live(self, member: Member) -> None:
        await member.join()
        exchange = member.exchange
        while exchange.turn is not None and exchange.turn.round <= self._last_round:
            push = self.one_hots.next_of(member.id)
            member.give([self.one_hots.gradient(push)] * BLOCKS, leaving=member in self._retiring)
            try:
                await self._step(member, push)
            except JobFailed as error:
                if member in self._present or "not a member" not in error.what:
                    raise
                return  # given up on by etcd: it never hears what became of its push
        if exchange.turn is not None:
            await exchange.leave()
        self._present.remove(member)
        self.left.append(member)

    async def _step(self, member: Member, push: OneHot) -> None:
        """A round as the strategy carries it out, with what goes wrong on the way."""
        exchange = member.exchange
        commit = None
        while commit is None:
            await exchange.push()
            if self._workers.random() < 0.1:
                await exchange.push()
            if self._workers.random() < 0.1:
                await self._push_without_weight(member)
            commit = await exchange.vote()
        await exchange.pull(commit)
        assert member.id in commit.contributors
        push.acknowledged(len(commit.contributors))
        if self._workers.random() < 0.1 and exchange.turn is not None:
            for memory in exchange._memory:
                assert await member.stage(memory)
        for value in member.values():
            assert abs(float(value[push.place]) + 1.0 / len(commit.contributors)) < 1e-9

    async def _push_without_weight(self, member: Member) -> None:
        """A push that is refused, under a number that is not used again."""
        turn = member.exchange.turn
        assert turn is not None
        refused = self.one_hots.next_of(member.id)
        gradient = self.one_hots.gradient(refused)
        call = Call(
            kind=Kind.PUSH,
            block=BlockId(1),
            meta=encode(PushMeta(turn.generation, 0.0, {}, 1, member.exchange.commit)),
            payload=bytes_of(gradient),
            seq=member.exchange._seq,
            round=turn.round,
        )
        with pytest.raises(JobFailed, match="weight"):
            await member.ask(call)
        refused.refused()

    # -- what happens ---------------------------------------------------------------------------

    async def happen(self, rounds: int) -> None:
        """Act at random until the job has done ``rounds``, then let it end."""
        acts: list[Callable[[], Awaitable[None]]] = [
            self._move_a_block,
            self._move_a_block,
            self._move_everything,
            self._worker_joins,
            self._worker_retires,
            self._worker_dies,
            self._worker_is_given_up_on,
            self._connections_are_cut,
            self._server_is_replaced,
        ]
        if self._replicas > 1:
            acts.append(self._worker_and_server_die)
        while self._rig.ledger.round < rounds:
            for act in self._acts.sample(acts, len(acts)):
                await act()
                await self._rounds_pass(self._acts.randrange(3))
        await self._quiet()
        self._last_round = self._rig.ledger.round + 2
        await self._eventually(lambda: not self._present)

    async def _eventually(self, condition: Callable[[], bool]) -> None:
        await eventually(lambda: bool(self._errors) or condition())
        if self._errors:
            raise self._errors[0]

    async def _rounds_pass(self, count: int) -> None:
        goal = self._rig.ledger.round + count
        await self._eventually(lambda: self._rig.ledger.round >= goal)

    def _count(self, act: str) -> None:
        self.happened[act] = self.happened.get(act, 0) + 1

    def _places(self) -> list[ServerId]:
        return self._acts.sample(sorted(self._rig.servers), self._replicas)

    async def _move_a_block(self) -> None:
        block = self._acts.choice(sorted(self._rig.entries))
        self._rig.pin([block], *self._places())
        self._count("move")

    async def _move_everything(self) -> None:
        self._rig.pin(self._rig.entries, *self._places())
        self._count("move all")

    async def _worker_joins(self) -> None:
        if len(self._present) < MOST_WORKERS:
            self.start_worker()
            self._count("join")

    async def _worker_retires(self) -> None:
        self._retiring.add(self._acts.choice(await self._staying()))
        self._count("retire")

    async def _worker_dies(self) -> None:
        await self._rig.kill(await self._victim())
        self._count("death")
        await self._rounds_pass(2)

    async def _worker_is_given_up_on(self) -> None:
        self._rig.evict((await self._victim()).id)
        self._count("eviction")
        await self._rounds_pass(2)

    async def _victim(self) -> Member:
        victim = self._acts.choice(await self._staying())
        self._present.remove(victim)
        return victim

    async def _staying(self) -> list[Member]:
        """The members that are not about to leave: two at least, so that one may go."""

        def staying() -> list[Member]:
            return [
                member
                for member in self._present
                if member not in self._retiring and member.exchange.turn is not None
            ]

        for _ in range(2 - len(staying())):
            self.start_worker()
        await self._eventually(lambda: len(staying()) > 1)
        return staying()

    async def _quiet(self) -> None:
        """Every block is where it belongs, and a round has passed since."""
        await self._eventually(self._settled)
        await self._rounds_pass(2)

    def _settled(self) -> bool:
        return not any(entry.learners for entry in self._rig.entries.values())

    async def _connections_are_cut(self) -> None:
        self._rig.servers[self._acts.choice(sorted(self._rig.servers))].cut()
        self._count("cut")

    async def _server_is_replaced(self) -> None:
        """One dies where others hold all that it holds; else it is drained."""
        server = self._acts.choice(sorted(self._rig.servers))
        await self._rig.start_server()
        if self._replicas == 1:
            await self._drain(server)
        else:
            await self._leave_to_heirs(server)
        await self._rig.kill_server(server)
        self._count("server")

    async def _worker_and_server_die(self) -> None:
        """At the same moment: what the worker has pushed is nowhere else to be had."""
        victim = await self._victim()
        server = self._acts.choice(sorted(self._rig.servers))
        await self._rig.start_server()
        await self._leave_to_heirs(server)
        await asyncio.gather(self._rig.kill_server(server), self._rig.kill(victim))
        self._count("both")

    async def _drain(self, server: ServerId) -> None:
        others = [name for name in sorted(self._rig.servers) if name != server]
        for block, entry in self._rig.entries.items():
            if server in entry.servers:
                self._rig.pin([block], self._acts.choice(others))
        await self._eventually(lambda: self._holds_nothing(server))

    async def _leave_to_heirs(self, server: ServerId) -> None:
        """Others are to hold what ``server`` holds, and some of them do already."""
        others = [name for name in sorted(self._rig.servers) if name != server]
        for block, entry in self._rig.entries.items():
            if server in entry.servers:
                self._rig.pin([block], *self._acts.sample(others, self._replicas))
        await self._eventually(lambda: self._has_heirs(server))

    def _has_heirs(self, server: ServerId) -> bool:
        entries = self._rig.entries.values()
        return all(len(entry.holders) > 1 for entry in entries if server in entry.holders)

    def _holds_nothing(self, server: ServerId) -> bool:
        return all(server not in entry.servers for entry in self._rig.entries.values())


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_push_counts_once_and_every_round_whole_whatever_happens(
    seed: int, replicas: int
) -> None:
    random = Random(f"{seed}:lag")

    def lag() -> float:
        return random.choice([0.0, 0.002 * random.random()])

    async with Rig(servers=3, start_workers=2, replicas=replicas, lag=lag) as rig:
        run = RandomRun(rig, seed, replicas)
        for _ in range(3):
            run.start_worker()
        await run.happen(ROUNDS)
        assert run.happened.keys() == set(ACTS if replicas == 1 else WITH_BACKUPS)
        last = run.left[-1]
        blocks = [value.reshape(-1) for value in last.values()]
        assert run.one_hots.faults(blocks, 2 * MOST_WORKERS) == []
        assert sum(push.contributors > 0 for push in run.one_hots.pushes) > ROUNDS
        for member in run.left:
            assert (await member.exchange.audit()).lost == 0
            assert (await member.exchange.audit()).duplicated == 0
        for block, entry in rig.entries.items():
            held = [rig.servers[server].replica(block) for server in entry.holders]
            assert len(held) == replicas
            digests = {digest(brought_up(item, rig.ledger.last)) for item in held if item}
            assert len(digests) == 1
