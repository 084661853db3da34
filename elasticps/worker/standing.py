"""A worker's standing in its job: joining, leaving, and what it reads of ledger and blocks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from elasticps.api.job_codec import load_codec
from elasticps.core.affinity import Span, joined
from elasticps.core.audit import Tally, Verdict
from elasticps.core.blocks import Hyperparameters, Model
from elasticps.core.commands import (
    Admitted,
    Answer,
    Called,
    Cut,
    Floor,
    Held,
    Hold,
    Initialized,
    Inspect,
    Inspected,
    Join,
    Leave,
    Reduce,
    Reduced,
    Regenerated,
    Register,
    Registered,
    Regroup,
    Through,
    Turn,
)
from elasticps.core.consistency import Consistency
from elasticps.core.ids import BlockId, Round, WorkerId
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.replica import Commit
from elasticps.errors import JobFailed, TrainingOver, UsageError
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.frame import Kind, Status
from elasticps.wire.messages import (
    PullMeta,
    SavedMeta,
    StateMeta,
    encode,
)
from elasticps.worker.attendance import Attendance
from elasticps.worker.block_calls import BlockCalls, SaveOrder, States, Targets, together
from elasticps.worker.client import Call, Client
from elasticps.worker.encoder import Encoder
from elasticps.worker.parameters import BlockMemory
from elasticps.worker.shared_memory import SharedMemory

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Restore = Callable[[], tuple[States, Cut]]


class Standing:
    """A member's word with the ledger outside of votes, and its reading of the blocks.

    ``commit`` is the newest round that it knows of, ``turn`` its part in the next. ``begun`` is the
    round that the job began after, a checkpoint's where it was resumed.
    """

    def __init__(
        self, client: Client, info: JobInfo, model: Model, memory: Sequence[BlockMemory]
    ) -> None:
        self.turn: Turn | None = None
        self.commit: Commit | None = None
        self.begun = Round(0)
        self.hyper: Sequence[Hyperparameters] = [{} for _ in model.groups]
        codec = load_codec(info.codec)
        self.encoder = Encoder(codec, client.worker)
        self._client = client
        gradients = self.encoder.sends_gradients
        self.shared = SharedMemory(info.job, client.worker, gradients=gradients)
        client.shared = self.shared
        self._in_rounds = info.consistency is Consistency.SYNC
        self._blocks = BlockCalls(client, memory, codec if self._in_rounds else None)
        self._memory = memory
        self._attendance = Attendance(client)
        self._floor: Floor = {}
        self._holds = 0
        self._reduced = Round(0), 0
        self._called: Called | None = None
        self._tally = Tally()
        at_once = [each.block.id for each in memory if self._in_rounds and each.at_once]
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
        self.begun = admitted.begun
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
            raise unexpected(answer)
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
            raise unexpected(answer)
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
            raise unexpected(answer)

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
            raise unexpected(answer)
        return answer

    async def leave(self) -> None:
        turn = self.turn
        through = turn is not None and turn.rank == 0 and turn.exhausted
        await self._client.ledger(lambda worker: Leave(worker, through))
        self.turn = None

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
            raise unexpected(answer)
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
            raise unexpected(answer)
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
            raise unexpected(answer)
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


def unexpected(answer: Answer) -> JobFailed:
    return JobFailed(f"the ledger gave an unexpected answer: {answer}", where="the job's ledger")
