"""One worker's side of a job's rounds on the data loop: push, vote, read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from elasticps.core.blocks import Model
from elasticps.core.commands import (
    Answer,
    Called,
    Committed,
    Ready,
    Regenerated,
    Turn,
    Vote,
)
from elasticps.core.ids import BlockId, Seq
from elasticps.core.ranges import Range
from elasticps.core.replica import Commit
from elasticps.errors import JobFailed, UsageError
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.frame import FLAG_EMPTY, FLAG_MEASURE, Kind, Status
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import (
    MeasureMeta,
    Place,
    PushMeta,
    decode,
    encode,
)
from elasticps.worker.block_calls import Targets, together
from elasticps.worker.client import HELD_TIMEOUT_S, Call, Client
from elasticps.worker.clipping import Clipping
from elasticps.worker.early_pushes import EarlyPushes
from elasticps.worker.group_calls import ALONE_BYTES, STREAMED_BYTES, slices
from elasticps.worker.parameters import BlockMemory
from elasticps.worker.standing import Standing, unexpected

if TYPE_CHECKING:
    import torch


class Exchange(Standing):
    """A member's traffic with servers and ledger.

    ``weight`` is that of a push, but for parameters that have one of their own in ``weights``.
    """

    def __init__(
        self, client: Client, info: JobInfo, model: Model, memory: Sequence[BlockMemory]
    ) -> None:
        super().__init__(client, info, model, memory)
        self.leaving = False
        self.keeps: tuple[Range, ...] = ()
        self.weight = 1.0
        self.speed = 0.0
        self.weights: Mapping[int, float] = {}
        self.clipping = Clipping(None)
        self.early = EarlyPushes(self._push)
        self._codec = info.codec
        self._keeps = False
        self._called_together = info.backup_workers > 0
        self._staged = [each for each in memory if not (self._in_rounds and each.at_once)]
        self._cut: dict[tuple[bool, int], list[list[BlockMemory]]] = {}
        self._metas: dict[tuple[object, ...], bytes] = {}
        self._seq = Seq(0)
        self._updates: Targets | None = None
        self._counted = False
        self._bound: float | None = None
        self._norms: dict[BlockId, float] = {}
        self._scale = 1.0
        self._unsent: dict[BlockId, Call] = {}

    async def await_change(self) -> None:
        """Wait until the workers are others than the turn's, and learn this one's new turn."""
        turn = self.member_turn
        await self._attendance.until_regenerated(turn.generation)
        if await self.vote() is not None:
            raise JobFailed("a round was voted for whose workers had changed")

    def begin(self, updates: Targets | None = None) -> None:
        """Number the pushes of the round that follows: of ``updates``, or of the gradients."""
        self._seq = Seq(self._seq + 1)
        self._called = None
        self._unsent.clear()
        self.encoder.settle(counted=False)
        self._metas.clear()
        self._updates = updates
        self._bound, self._scale = self.clipping.bound, 1.0

    async def round(self, into: Targets | None = None) -> bool:
        """Push, vote, again where the workers are others by then, and read as ``read`` does.

        True when the round counts what this worker pushed.
        """
        self._keeps = self._in_rounds and into is None  # a gradient stays until all is read
        try:
            has_voted = has_read = False
            if into is None and self._may_be_one_request():
                has_voted, has_read = await self._one_request()
            counted = self._take_counted() if has_voted else await self._pushed_and_voted()
            if not has_read:
                await self.read(into)
        finally:
            self._keeps = False
            self.shared.settle()
        return counted

    def _may_be_one_request(self) -> bool:
        """Is the round a run of pushes, a vote and pulls, with nothing in between?"""
        turn = self.member_turn
        return (
            self._in_rounds
            and not self._called_together
            and turn.contributes
            and not self.leaving  # its last vote ends its membership: it hears that from the vote
            and self._bound is None
            and all(
                each.is_held and not self.early.has_left(each.block.id) for each in self._memory
            )
            and len(self._staged) == len(self._memory)
            and len(self._runs) == 1
        )

    async def _one_request(self) -> tuple[bool, bool]:
        """Try to have the round by one request: whether it is voted for by that, and read.

        What has not been done is yet to be asked for, and may be asked for again.
        """
        turn = self.member_turn
        self.early.settle()
        pushes = [self._push_call(memory, turn) for memory in self._memory]
        asking = self._blocks.whole_round(pushes, self._ballot(turn), self._memory)
        told = await self._attendance.unless_regenerated(turn.generation, asking)
        self.shared.hold_gradients()
        if told is None:
            return False, False
        if not told.was_sent:  # coded and counted once
            self._unsent = {call.block: call for call in pushes}
        if told.answer is None or self._voted(told.answer, contributes=True) is None:
            return False, False
        return True, told.has_read

    async def whole_round(self) -> bool:
        """As ``round``, but that nothing is read."""
        try:
            return await self._pushed_and_voted()
        finally:
            self.shared.settle()

    async def _pushed_and_voted(self) -> bool:
        while True:
            await self.push()
            if await self.vote() is not None:
                break
        return self._take_counted()

    def _take_counted(self) -> bool:
        counted = self._counted
        self._tell_counted()
        return counted

    async def agree(self, *, pushes: bool) -> bool:
        """End the round with this worker's vote alone, or with what ``begin`` was given as well.

        False when the members changed first. Nothing is read.
        """
        contributes = self.member_turn.contributes
        if pushes and contributes:
            try:
                await self.push()
            finally:
                self.shared.settle()
        commit = await self.vote(contributes=contributes, pushed=pushes)
        self._tell_counted()
        return commit is not None

    async def push(self) -> None:
        """Hand in this step's gradient; on return every counted replica of every block has it.

        It returns early when the set of workers has changed, or the round goes on without this one:
        the vote says so.
        """
        turn = self.member_turn
        if self._in_rounds and not turn.contributes:
            raise UsageError(
                "a step without samples, where other workers read run.data",
                field="run.data",
                hint="every worker must take its samples from run.data, or none",
            )
        if self._called_together and not await self._is_called(turn):
            return
        self.early.settle()
        pushing = self._push_all(turn)
        if not self._in_rounds:
            await pushing
            self.shared.hold_gradients()
            return
        whole = await self._attendance.unless_regenerated(turn.generation, pushing)
        self.shared.hold_gradients()
        if whole is not None and not all(whole):
            # A block knows of a newer generation: the ledger knew of it first.
            await self._attendance.until_regenerated(turn.generation)
        elif whole is not None and self._bound is not None:
            norms = [self._norms[memory.block.id] for memory in self._memory]
            self._scale = self.clipping.scale(norms, self._bound)

    def push_early(self, parameter: int) -> None:
        """The gradient of a parameter, by its index in the model, is there. On the data loop."""
        if self.turn is not None:
            blocks = [each for each in self._staged if each.block.parameter == parameter]
            self.early.offer(blocks, self.turn)

    async def push_at_once(self, updates: Targets) -> None:
        """Push in no round; on return every counted replica has applied it, and none twice."""
        turn = self.member_turn
        self.begin(updates)
        pushed = [item for item in self._memory if item.at_once and item.block.parameter in updates]
        try:
            runs = slices(pushed, _has_none, streamed=self._streamed)
            taken = await together(self._push_run(run, turn) for run in runs)
        finally:
            self.shared.settle()
        if not all(taken):
            raise JobFailed("a push outside of rounds was refused", where="the data plane")
        self.encoder.settle(counted=True)
        for memory in pushed:
            block = memory.block.id
            self._tallies[block] = self._tallies[block].plus(self._seq)

    async def _is_called(self, turn: Turn) -> bool:
        """Say that the gradient is ready; False when the round is made by others, or is over."""
        answer = await self._client.ledger(
            lambda worker: Ready(worker, turn.round, turn.generation)
        )
        if isinstance(answer, Called):
            self._called = answer
            return answer.contributes
        self._called = Called(0, contributes=False)
        return False

    async def _push_all(self, turn: Turn) -> list[bool]:
        runs = (self._push_run(run, turn) for run in self._runs)
        return [all(await together(runs))]

    @property
    def _runs(self) -> list[list[BlockMemory]]:
        """Blocks that are pushed together."""
        placed = self._updates is None and self.shared.takes_gradients
        key = placed, self._streamed
        if key not in self._cut:
            is_placed = self.shared.has_place if placed else _has_none
            self._cut[key] = slices(self._staged, is_placed, streamed=self._streamed)
        return self._cut[key]

    @property
    def _streamed(self) -> int:
        """Bytes of large blocks that are sent together: all of them, where nothing is summed with
        others' and handed on to copies meanwhile."""
        if not self.encoder.sends_gradients:
            return 0
        alone = self.turn is not None and self.turn.pushers == 1 and not self._client.has_copies
        return ALONE_BYTES if alone else STREAMED_BYTES

    async def _push_run(self, run: Sequence[BlockMemory], turn: Turn) -> bool:
        """Push blocks together, but for those that have left already."""
        left = [memory for memory in run if self.early.has_left(memory.block.id)]
        if left:
            rest = [memory for memory in run if not self.early.has_left(memory.block.id)]
            early = (self.early.pushed(memory, turn) for memory in left)
            return all(await together([*early, *([self._push_run(rest, turn)] if rest else [])]))
        calls = [self._push_call(memory, turn) for memory in run]
        replies = await self._blocks.call_each(calls)
        return self._are_taken(zip(calls, replies, strict=True))

    async def _push(self, memory: BlockMemory, turn: Turn) -> bool:
        call = self._push_call(memory, turn)
        return self._are_taken([(call, await self._blocks.call(call))])

    def _push_call(self, memory: BlockMemory, turn: Turn) -> Call:
        unsent = self._unsent.pop(memory.block.id, None)
        if unsent is not None:
            return unsent
        update = memory.outgoing(self._updates)
        payload = None if update is None else self.encoder.payload(memory, self._seq, update)
        measures = self._in_rounds and self._bound is not None
        return Call(
            kind=Kind.PUSH,
            block=memory.block.id,
            meta=self._push_meta(memory, turn),
            payload=payload,
            seq=self._seq,
            round=turn.round,
            flags=(FLAG_EMPTY if payload is None else 0) | (FLAG_MEASURE if measures else 0),
            deadline_s=None,
            timeout_s=HELD_TIMEOUT_S,
            place=self._place(memory, update) if update is not None else None,
        )

    def _push_meta(self, memory: BlockMemory, turn: Turn) -> bytes:
        """Encoded once for all blocks that it is the same of."""
        weight = self.weights.get(memory.block.parameter, self.weight)
        pushers = self._called.pushers if self._called else turn.pushers
        key = turn.generation, weight, memory.group, memory.at_once, pushers, self.commit
        meta = self._metas.get(key)
        if meta is None:
            commit = None if memory.at_once else self._proof().commit
            hyper = self.hyper[memory.group]
            push = PushMeta(turn.generation, weight, hyper, pushers, commit, turn.rank, self._codec)
            meta = self._metas[key] = encode(push)
        return meta

    def _are_taken(self, answered: Iterable[tuple[Call, Reply]]) -> bool:
        taken = True
        for call, reply in answered:
            if reply.header.status is not Status.OK:
                taken = False
            elif call.flags & FLAG_MEASURE:
                self._norms[call.block] = decode(reply.meta, MeasureMeta).norm
        return taken

    def _place(self, memory: BlockMemory, update: torch.Tensor) -> Place | None:
        """Where in shared memory the block's gradient lies, None for nowhere."""
        if not self.shared.is_on:
            return None
        is_gradient, kept = self._updates is None, self._keeps and not memory.at_once
        return self.shared.gradient_place(memory, update, is_gradient=is_gradient, kept=kept)

    async def vote(self, *, contributes: bool = True, pushed: bool = True) -> Commit | None:
        turn = self.member_turn
        if self._called is not None:
            contributes = contributes and self._called.contributes

        ballot = self._ballot(turn, contributes=contributes, pushed=pushed)
        answer = await self._client.ledger(lambda _: ballot)
        return self._voted(answer, contributes=contributes, pushed=pushed)

    def _ballot(self, turn: Turn, *, contributes: bool = True, pushed: bool = True) -> Vote:
        return Vote(
            self._client.worker,
            turn.round,
            turn.generation,
            contributes,
            self.leaving,
            seq=self._seq,
            keeps=self.keeps if contributes else (),
            pushed=pushed,
            scale=self._scale,
            speed=self.speed,
        )

    def _voted(self, answer: Answer, *, contributes: bool, pushed: bool = True) -> Commit | None:
        """Take in what the ledger answers to a vote; None where the workers are others by now."""
        if isinstance(answer, Regenerated):
            self.turn, self._called = answer.turn, None
            return None
        if not isinstance(answer, Committed):
            raise unexpected(answer)
        self.turn, self.commit, self._floor = answer.turn, answer.commit, answer.floor
        self._counted = contributes and pushed and answer.counted
        self.encoder.settle(counted=self._counted)
        return answer.commit

    async def pull(self, commit: Commit, into: Targets | None = None) -> None:
        self._tell_counted()
        await self.read(into)

    def _tell_counted(self) -> None:
        if self._counted:
            self._tally = self._tally.plus(self._seq)
            self._counted = False

    async def abstain(self, into: Targets | None = None) -> None:
        """Take part in a round without a gradient: there were fewer samples than workers."""
        commit = None
        while commit is None:
            commit = await self.vote(contributes=False)
        await self.read(into)


def _has_none(_: BlockMemory) -> bool:
    """For updates that are not the parameters' own gradients."""
    return False
