"""One worker's side of a job's rounds on the data loop: join, push, vote, read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from elasticps.api.job_codec import load_codec
from elasticps.core.affinity import Span, joined
from elasticps.core.audit import Tally, Verdict
from elasticps.core.blocks import Hyperparameters, Model
from elasticps.core.commands import (
    Admitted,
    Answer,
    Called,
    Committed,
    Cut,
    Floor,
    Held,
    Hold,
    Initialized,
    Inspect,
    Inspected,
    Join,
    Leave,
    Ready,
    Reduce,
    Reduced,
    Regenerated,
    Register,
    Registered,
    Regroup,
    Through,
    Turn,
    Vote,
)
from elasticps.core.consistency import Consistency
from elasticps.core.ids import BlockId, Round, Seq, WorkerId
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.replica import Commit
from elasticps.errors import JobFailed, TrainingOver, UsageError
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.frame import FLAG_EMPTY, FLAG_MEASURE, Kind, Status
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import (
    MeasureMeta,
    Place,
    PullMeta,
    PushMeta,
    SavedMeta,
    StateMeta,
    decode,
    encode,
)
from elasticps.worker.attendance import Attendance
from elasticps.worker.block_calls import BlockCalls, SaveOrder, States, Targets, together
from elasticps.worker.client import HELD_TIMEOUT_S, Call, Client
from elasticps.worker.clipping import Clipping
from elasticps.worker.early_pushes import EarlyPushes
from elasticps.worker.encoder import Encoder
from elasticps.worker.group_calls import slices
from elasticps.worker.parameters import BlockMemory
from elasticps.worker.shared_memory import SharedMemory

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Restore = Callable[[], tuple[States, Cut]]


class Exchange:
    """A member's traffic with servers and ledger.

    ``weight`` is that of a push, but for parameters that have one of their own in ``weights``.
    """

    def __init__(
        self, client: Client, info: JobInfo, model: Model, memory: Sequence[BlockMemory]
    ) -> None:
        self.turn: Turn | None = None
        self.commit: Commit | None = None
        self.leaving = False
        self.keeps: tuple[Range, ...] = ()
        self.weight = 1.0
        self.speed = 0.0
        self.weights: Mapping[int, float] = {}
        self.hyper: Sequence[Hyperparameters] = [{} for _ in model.groups]
        self.clipping = Clipping(None)
        codec = load_codec(info.codec)
        self.encoder = Encoder(codec, client.worker)
        self._codec = info.codec
        self._client = client
        gradients = self.encoder.sends_gradients
        self.shared = SharedMemory(info.job, client.worker, gradients=gradients)
        client.shared = self.shared
        self._keeps = False
        self._in_rounds = info.consistency is Consistency.SYNC
        self._blocks = BlockCalls(client, memory, codec if self._in_rounds else None)
        self._called_together = info.backup_workers > 0
        self._memory = memory
        self._staged = [each for each in memory if not (self._in_rounds and each.at_once)]
        self._runs, self._large = slices(self._staged)
        self._metas: dict[tuple[object, ...], bytes] = {}
        self.early = EarlyPushes(self._push)
        self._attendance = Attendance(client)
        self._floor: Floor = {}
        self._holds = 0
        self._reduced = Round(0), 0
        self._seq = Seq(0)
        self._updates: Targets | None = None
        self._called: Called | None = None
        self._counted = False
        self._bound: float | None = None
        self._norms: dict[BlockId, float] = {}
        self._scale = 1.0
        self._tally = Tally()
        at_once = {each.block.id for each in memory} - {each.block.id for each in self._staged}
        self._tallies = dict.fromkeys(at_once, Tally())

    # -- membership -----------------------------------------------------------------------------

    async def join(
        self,
        restore: Restore | None = None,
        first_values: Iterable[Sequence[torch.Tensor]] | None = None,
    ) -> None:
        """Become a member, give the blocks their first values if asked to, and read what is held.

        ``restore`` gives what a checkpoint has instead; what it raises comes out as it is.
        ``first_values``: parameters that have theirs until the next are asked for; None: all have.
        """
        admitted = await self._admission(await self._client.ledger(Join))
        if self._client.why_not_share:
            self.shared.why_not = self._client.why_not_share
        elif self._client.has_near_servers:
            self.shared.adopt(self._memory)
        if admitted.initialize:
            cut = None
            if restore is not None:
                states, cut = await asyncio.to_thread(restore)
                await self.initialize(states, cut.round)
            else:
                await self._initialize_in_parts(first_values)
            admitted = await self._admission(
                await self._client.ledger(lambda worker: Initialized(worker, cut))
            )
        self.turn, self.commit, self._floor = admitted.turn, admitted.commit, admitted.floor
        await self.read()

    async def read(self, into: Targets | None = None) -> None:
        """Read blocks as of the last round, into ``into``; by default all into the parameters."""
        try:
            await self._blocks.read(self._proof(), into)
        finally:
            self.shared.settle()

    async def _admission(self, answer: Answer) -> Admitted:
        if isinstance(answer, Through):
            raise TrainingOver("all data are read, and the job's main worker has ended")
        if not isinstance(answer, Admitted):
            raise _unexpected(answer)
        return answer

    async def _initialize_in_parts(self, parts: Iterable[Sequence[torch.Tensor]] | None) -> None:
        for part in [[memory.parameter for memory in self._memory]] if parts is None else parts:
            of_part = {id(parameter) for parameter in part}
            memory = [each for each in self._memory if id(each.parameter) in of_part]
            await self.initialize([each.initial() for each in memory], Round(0), memory)

    async def initialize(
        self, states: States, round_: Round, memory: Sequence[BlockMemory] | None = None
    ) -> None:
        """Give blocks (all, but for ``memory``) a state as of ``round_``.

        A job that has begun to train keeps its own. Raises UsageError when only some blocks have
        begun: their workers are not in step.
        """

        async def one(memory: BlockMemory, meta: StateMeta, payload: memoryview) -> bool:
            block = memory.block.id
            call = Call(
                kind=Kind.INIT, block=block, meta=encode(meta), payload=payload, round=round_
            )
            return (await self._blocks.call(call)).header.status is Status.OK

        pairs = zip(self._memory if memory is None else memory, states, strict=True)
        taken = await together(one(memory, meta, payload) for memory, (meta, payload) in pairs)
        if any(taken) and not all(taken):
            raise UsageError(
                "some blocks took the state, others had begun to train",
                field="load_state_dict",
                hint="load the same state in every worker, before its first step",
            )

    async def register(self, data: DataSpec, policy: str = "", ahead: int = 0) -> Turn:
        """Say what data the job reads; returns the turn with this worker's samples."""
        answer = await self._client.ledger(lambda worker: Register(worker, data, policy, ahead))
        if not isinstance(answer, Registered):
            raise _unexpected(answer)
        self.turn = answer.turn
        if self._in_rounds and answer.commit != self.commit:
            self.commit = answer.commit
            await self.read()
        return answer.turn

    async def hold(self, parts: Sequence[Range]) -> None:
        """Say which positions lie on this node."""
        self._holds += 1
        number = self._holds
        answer = await self._client.ledger(lambda worker: Hold(worker, number, tuple(parts)))
        if not isinstance(answer, Held):
            raise _unexpected(answer)

    async def reduce(self, numbers: Sequence[float], weight: float) -> Reduced:
        """The sums of what the round's members give."""
        round_ = self.commit.round if self.commit else Round(0)
        last, number = self._reduced
        number = number + 1 if last == round_ else 1
        self._reduced = round_, number
        answer = await self._client.ledger(
            lambda worker: Reduce(worker, round_, number, tuple(numbers), weight)
        )
        if not isinstance(answer, Reduced):
            raise _unexpected(answer)
        return answer

    async def leave(self) -> None:
        turn = self.turn
        through = turn is not None and turn.rank == 0 and turn.exhausted
        await self._client.ledger(lambda worker: Leave(worker, through))
        self.turn = None

    async def await_change(self) -> None:
        """Wait until the workers are others than the turn's, and learn this one's new turn."""
        turn = self.member_turn
        await self._attendance.until_regenerated(turn.generation)
        if await self.vote() is not None:
            raise JobFailed("a round was voted for whose workers had changed")

    async def regroup(self, patience_s: float) -> None:
        """What the members do together has failed: learn this worker's new turn.

        Mostly a member has died, of which the ledger hears soon; where it does not within
        ``patience_s`` it is asked to begin the round anew with the same members.
        """
        turn = self.member_turn
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._attendance.until_regenerated(turn.generation)
        answer = await self._client.ledger(lambda worker: Regroup(worker, turn.generation))
        if not isinstance(answer, Regenerated):
            raise _unexpected(answer)
        self.turn, self._called = answer.turn, None

    async def await_joiner(self) -> None:
        """What the members do together needs another: wait until one is seated, or one is gone."""
        turn = self.member_turn

        def word(worker: WorkerId) -> Regroup:
            return Regroup(worker, turn.generation, seats=True)

        answer = await self._client.ledger(word)
        if isinstance(answer, Regenerated) and answer.turn.generation == turn.generation:
            await self._attendance.until_regenerated(turn.generation)
            answer = await self._client.ledger(word)
        if not isinstance(answer, Regenerated):
            raise _unexpected(answer)
        self.turn, self._called = answer.turn, None

    async def until_regenerated(self) -> None:
        """Wait until the workers are others than the turn's."""
        await self._attendance.until_regenerated(self.member_turn.generation)

    async def unless_regenerated(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """The work's result; None, and the work cancelled, when the turn's generation is over."""
        generation = self.member_turn.generation
        return await self._attendance.unless_regenerated(generation, work)

    async def aclose(self) -> None:
        """Wait for nothing any more. Idempotent."""
        await self._attendance.aclose()
        self.shared.close()

    # -- a round --------------------------------------------------------------------------------

    def begin(self, updates: Targets | None = None) -> None:
        """Number the pushes of the round that follows: of ``updates``, or of the gradients."""
        self._seq = Seq(self._seq + 1)
        self._called = None
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
            counted = await self._pushed_and_voted()
            await self.read(into)
        finally:
            self._keeps = False
            self.shared.settle()
        return counted

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
            runs, others = slices(pushed)
            pushing = [self._push_run(run, turn) for run in runs]
            taken = await together([*pushing, *(self._push(memory, turn) for memory in others)])
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
        others = (self.early.pushed(memory, turn) for memory in self._large)
        taken = await together([*runs, *others])
        return [all(taken)]

    async def _push_run(self, run: Sequence[BlockMemory], turn: Turn) -> bool:
        """Push small blocks together, but for those that have left already."""
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
        payload = self.encoder.payload(memory, self._seq, self._updates)
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
            place=self._place(memory) if payload is not None else None,
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

    def _place(self, memory: BlockMemory) -> Place | None:
        """Where in shared memory the block's gradient lies, None for nowhere."""
        if not self.shared.is_on:
            return None
        update = memory.outgoing(self._updates)
        assert update is not None
        is_gradient, kept = self._updates is None, self._keeps and not memory.at_once
        return self.shared.gradient_place(memory, update, is_gradient=is_gradient, kept=kept)

    async def vote(self, *, contributes: bool = True, pushed: bool = True) -> Commit | None:
        turn = self.member_turn
        if self._called is not None:
            contributes = contributes and self._called.contributes

        def ballot(worker: WorkerId) -> Vote:
            return Vote(
                worker,
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

        answer = await self._client.ledger(ballot)
        if isinstance(answer, Regenerated):
            self.turn, self._called = answer.turn, None
            return None
        if not isinstance(answer, Committed):
            raise _unexpected(answer)
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

    @property
    def transport(self) -> str:
        """What the blocks' bytes go over, and why not shared memory, for a user to read."""
        return self._client.transport

    @property
    def bytes_pulled(self) -> int:
        """Of values alone, what was asked for again included."""
        return self._blocks.bytes_pulled

    def spans_of(self, parameters: Collection[int]) -> tuple[Span, ...]:
        """The blocks of these parameters, by their index in the model."""
        blocks = (each.block for each in self._memory if each.block.parameter in parameters)
        return joined((block.id, BlockId(block.id + 1)) for block in blocks)

    # -- reading what the servers hold ----------------------------------------------------------

    def _proof(self) -> PullMeta:
        """What this worker has been told: no block may give it anything older."""
        return PullMeta(self.commit if self._in_rounds else None, self._floor)

    async def states(self) -> States:
        """Value and optimizer state of every block, as of the last round that this worker knows.

        Raises BlockUnavailable when a block has gone on meanwhile.
        """
        round_ = self.commit.round if self.commit else Round(0)
        return await self._blocks.states(self._proof(), round_ if self._in_rounds else None)

    async def options(self) -> list[Hyperparameters]:
        """For each param group, what the last round changed of the options in the model."""
        first = {memory.group: memory for memory in reversed(self._memory)}
        changed: list[Hyperparameters] = [{} for _ in self.hyper]
        for group, memory in first.items():
            state, _ = await self._blocks.state(self._proof(), memory)
            changed[group] = state.hyper
        return changed

    async def cut(self) -> Cut:
        """Where the job stands, as its ledger has it."""
        answer = await self._client.ledger(Inspect)
        if not isinstance(answer, Inspected):
            raise _unexpected(answer)
        return answer.cut

    async def begin_save(self, order: SaveOrder) -> tuple[PullMeta, Cut]:
        """Have every block written as of now; it goes on once each server knows.

        Returns what ``saved`` is to be asked with, and where the job stands. Raises
        BlockUnavailable when a block has gone on meanwhile.
        """
        proof = self._proof()
        # Before any block is copied: what counts as read must be in every block.
        cut = await self.cut()
        await self._blocks.save(proof, order, written=False)
        return proof, cut

    async def saved(self, proof: PullMeta, order: SaveOrder) -> list[tuple[BlockMemory, SavedMeta]]:
        """Wait until every block is written. Raises BlockUnavailable and CheckpointError."""
        return await self._blocks.save(proof, order, written=True)

    async def audit(self) -> Verdict:
        """Hold what this worker was told was applied against what the blocks applied of it."""
        return await self._blocks.audit(self._proof(), self._tally, self._tallies)

    @property
    def member_turn(self) -> Turn:
        """This worker's part in the round to come. Raises JobFailed once it has left."""
        if self.turn is None:
            raise JobFailed("this worker has left the job")
        return self.turn


def _unexpected(answer: Answer) -> JobFailed:
    return JobFailed(f"the ledger gave an unexpected answer: {answer}", where="the job's ledger")
