"""One worker's side of a job's rounds: join, stage, vote, read; what a strategy drives."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from elasticps.core.audit import Tally, Verdict, compare
from elasticps.core.blocks import Hyperparameters, Model
from elasticps.core.ids import BlockId, Generation, Round, Seq, WorkerId
from elasticps.core.ledger import (
    Admitted,
    Answer,
    Committed,
    Initialized,
    Join,
    Leave,
    Regenerated,
    Register,
    Registered,
    Turn,
    Vote,
)
from elasticps.core.ranges import DataSpec
from elasticps.core.replica import Commit
from elasticps.errors import JobFailed
from elasticps.wire.frame import FLAG_EMPTY, Kind, Status
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import AuditMeta, PullMeta, PushMeta, StateMeta, decode, encode
from elasticps.worker.client import Call, Client
from elasticps.worker.parameters import BlockMemory

CALLS_IN_FLIGHT = 64
"""Blocks on their way at a time: enough to fill the pipe, few enough to bound what waits."""


class Exchange:
    """A member's traffic with servers and ledger (an ``api.strategy.Step`` for each step)."""

    def __init__(self, client: Client, model: Model, memory: Sequence[BlockMemory]) -> None:
        self.turn: Turn | None = None
        self.commit: Commit | None = None
        self.leaving = False
        self.weight = 1.0
        self.hyper: Sequence[Hyperparameters] = [{} for _ in model.groups]
        self._client = client
        self._memory = memory
        self._seq = Seq(0)
        self._tally = Tally()
        self._window = asyncio.Semaphore(CALLS_IN_FLIGHT)

    # -- membership -----------------------------------------------------------------------------

    async def join(self) -> None:
        """Become a member, give the blocks their first values if asked to, and read them all."""
        admitted = await self._admission(await self._client.ledger(Join))
        if admitted.initialize:
            await self.initialize([memory.initial() for memory in self._memory])
            admitted = await self._admission(await self._client.ledger(Initialized))
        self.turn, self.commit = admitted.turn, admitted.commit
        await self.read()

    async def read(self) -> None:
        """Read every block as of the last round."""
        await self._pull_all(self.commit)

    async def _admission(self, answer: Answer) -> Admitted:
        if not isinstance(answer, Admitted):
            raise _unexpected(answer)
        return answer

    async def initialize(self, states: Sequence[tuple[StateMeta, memoryview]]) -> None:
        """Give every block a state; blocks that have begun to train keep theirs."""

        async def one(memory: BlockMemory, meta: StateMeta, payload: memoryview) -> None:
            await self._call(
                Call(kind=Kind.INIT, block=memory.block.id, meta=encode(meta), payload=payload)
            )

        pairs = zip(self._memory, states, strict=True)
        await _together(one(memory, meta, payload) for memory, (meta, payload) in pairs)

    async def register(self, data: DataSpec) -> Turn:
        """Say what data the job reads; returns the turn with this worker's samples."""
        answer = await self._client.ledger(lambda worker: Register(worker, data))
        if not isinstance(answer, Registered):
            raise _unexpected(answer)
        self.turn = answer.turn
        return answer.turn

    async def leave(self) -> None:
        await self._client.ledger(Leave)
        self.turn = None

    # -- a step, as a strategy sees it ----------------------------------------------------------

    def begin(self) -> None:
        """Number the pushes of the step that follows."""
        self._seq = Seq(self._seq + 1)

    async def push(self) -> None:
        turn = self._member_turn()

        async def one(memory: BlockMemory) -> None:
            async with self._window:
                await self._client.call(self._push(memory, turn.round, turn.generation))

        await _together(one(memory) for memory in self._memory)

    def _push(self, memory: BlockMemory, number: Round, generation: Generation) -> Call:
        """Stage one block's gradient. What the server refuses, the ledger's vote will explain."""
        gradient = memory.gradient()
        return Call(
            kind=Kind.PUSH,
            block=memory.block.id,
            meta=encode(PushMeta(generation, self.weight, self.hyper[memory.group])),
            payload=gradient,
            seq=self._seq,
            round=number,
            flags=FLAG_EMPTY if gradient is None else 0,
        )

    async def vote(self, *, contributes: bool = True) -> Commit | None:
        turn = self._member_turn()

        def ballot(worker: WorkerId) -> Vote:
            return Vote(worker, turn.round, turn.generation, contributes, self.leaving)

        answer = await self._client.ledger(ballot)
        if isinstance(answer, Regenerated):
            self.turn = answer.turn
            return None
        if not isinstance(answer, Committed):
            raise _unexpected(answer)
        self.turn, self.commit = answer.turn, answer.commit
        return answer.commit

    async def pull(self, commit: Commit) -> None:
        await self._pull_all(commit)
        self._tally = self._tally.plus(self._seq)

    async def abstain(self) -> None:
        """Take part in a round without a gradient: there were fewer samples than workers."""
        commit = None
        while commit is None:
            commit = await self.vote(contributes=False)
        await self._pull_all(commit)

    async def _pull_all(self, commit: Commit | None) -> None:
        await _together(self._pull(memory, commit) for memory in self._memory)

    async def _pull(self, memory: BlockMemory, commit: Commit | None) -> None:
        """Read one block as of ``commit``, pushing again where a new primary lacks the gradient.

        All in one place of the window: others may wait in theirs for this very push.
        """
        call = Call(
            kind=Kind.PULL,
            block=memory.block.id,
            meta=encode(PullMeta(commit)),
            into=memory.value,
        )
        async with self._window:
            status = (await self._client.call(call)).header.status
            while status is Status.NOT_STAGED and commit is not None:
                await self._client.call(self._push(memory, commit.round, commit.generation))
                status = (await self._client.call(call)).header.status
        if status is not Status.OK:
            raise JobFailed(
                f"block {memory.block.id} is not at the job's round: {status.name}",
                where="the data plane",
            )

    # -- reading what the servers hold ----------------------------------------------------------

    async def states(self) -> list[tuple[StateMeta, memoryview]]:
        """Value and optimizer state of every block."""

        async def one(memory: BlockMemory) -> tuple[StateMeta, memoryview]:
            reply = await self._call(Call(kind=Kind.STATE, block=memory.block.id))
            assert reply.payload is not None
            return decode(reply.meta, StateMeta), reply.payload

        return await _together(one(memory) for memory in self._memory)

    async def audit(self) -> Verdict:
        """Hold what this worker was told was applied against what the blocks applied of it."""

        async def one(block: BlockId) -> Verdict:
            reply = await self._call(Call(kind=Kind.STATUS, block=block))
            return compare(self._tally, decode(reply.meta, AuditMeta).applied)

        total = Verdict()
        for verdict in await _together(one(memory.block.id) for memory in self._memory):
            total = total.plus(verdict)
        return total

    async def _call(self, call: Call) -> Reply:
        async with self._window:
            return await self._client.call(call)

    def _member_turn(self) -> Turn:
        if self.turn is None:
            raise JobFailed("this worker has left the job")
        return self.turn


async def _together(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run all at once; the first error cancels the rest and is raised by itself."""
    tasks: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks.extend(group.create_task(call) for call in calls)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _unexpected(answer: Answer) -> JobFailed:
    return JobFailed(f"the ledger gave an unexpected answer: {answer}", where="the job's ledger")
