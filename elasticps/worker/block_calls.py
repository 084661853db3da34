"""A worker's requests of its job's blocks, a bounded number at a time, and what it reads there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch

from elasticps.api.job_codec import JobCodec
from elasticps.core.audit import Tally, Verdict, compare
from elasticps.core.commands import Answer, Vote
from elasticps.core.ids import BlockId, Round
from elasticps.errors import BlockUnavailable, CheckpointError, JobFailed
from elasticps.wire.coded_values import are_coded
from elasticps.wire.frame import Kind, Status
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import (
    AuditMeta,
    EarlierFile,
    PullMeta,
    SavedMeta,
    SaveMeta,
    StateMeta,
    ValueMeta,
    decode,
    encode,
)
from elasticps.worker.client import HELD_TIMEOUT_S, Call, Client
from elasticps.worker.coded_pull import CodedPull
from elasticps.worker.group_calls import Group, Settled, slices
from elasticps.worker.parameters import BlockMemory

CALLS_IN_FLIGHT = 64
"""Blocks on their way at a time: enough to fill the pipe, few enough to bound what waits."""

States = Sequence[tuple[StateMeta, memoryview]]
Targets = Mapping[int, torch.Tensor]
"""Contiguous tensors by the index of their parameter in the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOrder:
    """Write the blocks into the directory named ``draft``; what is as in ``earlier`` is there.

    ``exact``: as after the round that the worker's proof proves.
    """

    draft: str
    exact: bool
    earlier: Mapping[BlockId, EarlierFile]


class WholeRound(msgspec.Struct, frozen=True, gc=False):
    """What the ledger answered, None for nothing, and whether all blocks are read."""

    answer: Answer | None
    has_read: bool
    was_sent: bool


class BlockCalls:
    """``bytes_pulled`` are of values alone, what was asked for again included.

    ``proof`` is what the worker has been told: no block may give it anything older. ``codec`` is
    that of a job in rounds.
    """

    def __init__(
        self, client: Client, memory: Sequence[BlockMemory], codec: JobCodec | None = None
    ) -> None:
        self.bytes_pulled = 0
        self._codec = codec
        self._client = client
        self._memory = memory
        self._window = asyncio.Semaphore(CALLS_IN_FLIGHT)
        # What waits for a disk must not hold up what trains.
        self._saves = asyncio.Semaphore(CALLS_IN_FLIGHT)

    async def call(self, call: Call) -> Reply:
        async with self._window:
            return await self._client.call(call)

    async def call_each(self, calls: Sequence[Call]) -> list[Reply]:
        """Calls of a run of blocks, of one kind: together, and what that leaves one by one.

        It takes the place of one call in what is on its way.
        """
        settled: Settled = [None] * len(calls)

        async def single(index: int) -> None:
            settled[index] = await self._client.call(calls[index])

        async def grouped(group: Group) -> None:
            left = await self._client.groups.ask(group, settled)
            if left:
                await together(map(single, left))

        async with self._window:
            groups, rest = self._client.groups.divided(calls)
            await together([*map(grouped, groups), *map(single, rest)])
        return cast("list[Reply]", settled)

    async def whole_round(
        self, pushes: Sequence[Call], vote: Vote, memory: Sequence[BlockMemory]
    ) -> WholeRound:
        """Push, vote and read a run of blocks by one request, where one can."""
        meta = encode(PullMeta())  # the server puts there what the vote is answered
        pulls = [self._pull_call(each, each.parameter, meta) for each in memory]
        async with self._window:
            told = await self._client.rounds.ask(pushes, vote, pulls)
        if told is None:
            return WholeRound(None, has_read=False, was_sent=False)
        for call, reply in zip(pulls, told.pulled, strict=True):
            if reply is not None:
                self._have_read(call, reply)
        return WholeRound(told.answer, has_read=None not in told.pulled, was_sent=True)

    def _pull_call(
        self, memory: BlockMemory, tensor: torch.Tensor, meta: bytes, coded: CodedPull | None = None
    ) -> Call:
        shared = self._client.shared
        return Call(
            kind=Kind.PULL,
            block=memory.block.id,
            meta=meta,
            into=memory.of(tensor),
            deadline_s=None,
            place=None if shared is None else shared.value_place(memory.block, tensor),
            coded=coded,
        )

    def _have_read(self, call: Call, reply: Reply) -> None:
        _check_settled(call, reply)
        if self._client.shared is not None:
            self._client.shared.returned(call.block)
        assert call.into is not None
        is_difference = call.coded and decode(reply.meta, ValueMeta).makes is not None
        self.bytes_pulled += len(reply.payload or b"") if is_difference else len(call.into)

    async def read(self, proof: PullMeta, into: Targets | None) -> None:
        """Read the values of the parameters in ``into`` there, or all that are held here."""
        metas = {at_once: encode(_proof_of(proof, at_once=at_once)) for at_once in (False, True)}

        def target(memory: BlockMemory) -> torch.Tensor:
            return memory.parameter if into is None else into[memory.block.parameter]

        def call(memory: BlockMemory) -> Call:
            tensor = target(memory)
            coded = self._coded(memory, proof, memory.of(tensor))
            return self._pull_call(memory, tensor, metas[memory.at_once], coded)

        async def one(memory: BlockMemory) -> None:
            asked = call(memory)
            self._have_read(asked, await self.call(asked))

        async def run(memory: Sequence[BlockMemory]) -> None:
            asked = [call(each) for each in memory]
            for each, reply in zip(asked, await self.call_each(asked), strict=True):
                self._have_read(each, reply)

        wanted = [
            memory
            for memory in self._memory
            if (memory.is_held if into is None else memory.block.parameter in into)
        ]
        coded = [memory for memory in wanted if self._is_coded(memory)]
        whole = [memory for memory in wanted if not self._is_coded(memory)]
        runs = slices(whole, lambda memory: self._is_placed(memory, target(memory)))
        await together([*map(run, runs), *map(one, coded)])

    def _is_placed(self, memory: BlockMemory, tensor: torch.Tensor) -> bool:
        shared = self._client.shared
        return shared is not None and shared.value_place(memory.block, tensor) is not None

    def _is_coded(self, memory: BlockMemory) -> bool:
        codec = self._codec
        return codec is not None and not memory.at_once and are_coded(codec, memory.block)

    def _coded(self, memory: BlockMemory, proof: PullMeta, target: memoryview) -> CodedPull | None:
        codec = self._codec
        if codec is None or not self._is_coded(memory):
            return None
        its_proof = _proof_of(proof, at_once=memory.at_once)
        return CodedPull(codec, its_proof, target, memory.parameter.dtype)

    async def states(self, proof: PullMeta, round_: Round | None) -> States:
        """Value and optimizer state of every block, as of ``round_`` where that is not None.

        Raises BlockUnavailable when a block has gone on meanwhile.
        """

        async def one(memory: BlockMemory) -> tuple[StateMeta, memoryview]:
            state, payload = await self.state(proof, memory)
            if round_ is not None and state.round != round_ and not memory.at_once:
                raise BlockUnavailable(
                    f"block {memory.block.id} is at round {state.round}, not {round_}"
                )
            return state, payload

        return await together(one(memory) for memory in self._memory)

    async def state(self, proof: PullMeta, memory: BlockMemory) -> tuple[StateMeta, memoryview]:
        meta = _proof_for(memory, proof)
        call = Call(kind=Kind.STATE, block=memory.block.id, meta=meta, deadline_s=None)
        reply = await self._settled(call)
        assert reply.payload is not None
        return decode(reply.meta, StateMeta), reply.payload

    async def save(
        self, proof: PullMeta, order: SaveOrder, *, written: bool
    ) -> list[tuple[BlockMemory, SavedMeta]]:
        """Have every block written by the server that leads it.

        Unless ``written``, returns nothing, once all are told. Raises BlockUnavailable when a block
        has gone on meanwhile, and CheckpointError when one cannot be written.
        """

        async def one(memory: BlockMemory) -> tuple[BlockMemory, SavedMeta] | None:
            its_proof = _proof_of(proof, at_once=memory.at_once)
            earlier = order.earlier.get(memory.block.id)
            meta = SaveMeta(its_proof, order.draft, order.exact, written, earlier)
            call = Call(
                kind=Kind.SAVE,
                block=memory.block.id,
                meta=encode(meta),
                deadline_s=None,
                timeout_s=HELD_TIMEOUT_S,
            )
            try:
                async with self._saves if written else self._window:
                    reply = await self._client.call(call)
            except JobFailed as error:
                raise CheckpointError(error.what, where=error.where) from error
            if reply.header.status is not Status.OK:
                raise BlockUnavailable(f"block {memory.block.id} has gone on before it was written")
            return (memory, decode(reply.meta, SavedMeta)) if written else None

        found = await together(one(memory) for memory in self._memory)
        return [each for each in found if each is not None]

    async def audit(
        self, proof: PullMeta, tally: Tally, at_once: Mapping[BlockId, Tally]
    ) -> Verdict:
        """Hold what this worker was told was applied against what the blocks applied of it.

        ``at_once``: the tallies of blocks that were pushed to in no rounds.
        """

        async def one(memory: BlockMemory) -> Verdict:
            block = memory.block.id
            call = Call(kind=Kind.STATUS, block=block, meta=_proof_for(memory, proof))
            applied = decode((await self._settled(call)).meta, AuditMeta).applied
            return compare(at_once.get(block, tally), applied)

        total = Verdict()
        for verdict in await together(one(memory) for memory in self._memory):
            total = total.plus(verdict)
        return total

    async def _settled(self, call: Call) -> Reply:
        reply = await self.call(call)
        _check_settled(call, reply)
        return reply


def _check_settled(call: Call, reply: Reply) -> None:
    if reply.header.status is not Status.OK:
        raise JobFailed(
            f"block {call.block} refused a read: {reply.header.status.name}",
            where="the data plane",
        )


def _proof_for(memory: BlockMemory, proof: PullMeta) -> bytes:
    return encode(_proof_of(proof, at_once=memory.at_once))


def _proof_of(proof: PullMeta, *, at_once: bool) -> PullMeta:
    """A block whose pushes are in no rounds knows of none."""
    return PullMeta(None if at_once else proof.commit, proof.floor)


async def together(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run all at once; the first error cancels the rest and is raised by itself."""
    calls = list(calls)
    if len(calls) == 1:  # which needs no task of its own
        return [await calls[0]]
    tasks: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks.extend(group.create_task(call) for call in calls)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
