"""A hosted block of parameters: requests in, gradients staged, rounds prepared and applied."""

from __future__ import annotations

import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch

from elasticps.api.job_codec import JobCodec
from elasticps.core.audit import Tally, mix
from elasticps.core.blocks import Hyperparameters
from elasticps.core.ids import BlockId, Round, ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.core.replica import Commit, Push, PushOutcome, Replica, RoundOp, Settled
from elasticps.core.replication import Replication, Role
from elasticps.errors import CodecError, PluginError, WireError
from elasticps.server.finite import FiniteWatch, SpotCheck
from elasticps.server.hosted import Hosted, Request, Streams
from elasticps.server.joint_step import SMALL_BYTES, Due, is_joint, step_together
from elasticps.server.meter import Meter
from elasticps.server.saving import Save, Saver
from elasticps.server.staging import PreparedGradient, Staged, Staging
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.frame import FLAG_EMPTY, FLAG_MEASURE, Kind, Status
from elasticps.wire.messages import (
    AuditMeta,
    JobInfo,
    MeasureMeta,
    OpMeta,
    Prepared,
    PullMeta,
    PushMeta,
    RefusalMeta,
    SavedMeta,
    SaveMeta,
    SnapshotMeta,
    StateMeta,
    ValueMeta,
    encode,
)
from elasticps.wire.tallies import JobCounts
from elasticps.wire.tensors import bytes_of

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Siblings:
    """All that a server hosts of one job, and the newest commit that was shared among them."""

    hosted: Mapping[BlockId, Hosted]
    swept: Commit | None = None


class ParameterBlock(Hosted):
    """One replica of one block of parameters."""

    def __init__(
        self,
        info: JobInfo,
        tensor: TensorBlock,
        me: ServerId,
        streams: Streams,
        counts: JobCounts,
        spot_check: SpotCheck,
        codec: JobCodec | None = None,
        *,
        saver: Saver | None = None,
        in_rounds: bool = True,
        siblings: Siblings | None = None,
    ) -> None:
        super().__init__(info.job, tensor.block.id, streams, counts)
        self._siblings = siblings
        self.pushes = 0
        self.meter = Meter(time.monotonic())
        self._finite = FiniteWatch(info, tensor.block.id, counts, spot_check)
        self._max_coded = codec.max_nbytes(tensor.block.numel) if codec else None
        self._codec = codec
        self._codec_name = info.codec
        self.tensor = tensor
        self._replica = Replica(
            me=me,
            in_rounds=in_rounds,
            min_insync=info.min_insync,
        )
        self._staging = Staging(counts)
        self._prepared = PreparedGradient(None, {})
        self._answers: dict[Request, tuple[bytes, bytes | None]] = {}
        self._broken = ""
        self._first_push_ns = 0
        self._saver = saver
        self._save: Save | None = None
        self._is_small = in_rounds and tensor.nbytes <= SMALL_BYTES

    @property
    def replication(self) -> Replication:
        return self._replica.replication

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def nbytes_held(self) -> int:
        return self.tensor.nbytes_held

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def pushed_dtype(self) -> torch.dtype | None:
        """Of a gradient as it is pushed; None where it is coded."""
        return None if self._codec else self.tensor.dtype

    def check_push_nbytes(self, nbytes: int) -> None:
        """Raise WireError for a payload of a size that no push of this block has."""
        most = self._max_coded
        if nbytes > most if most is not None else nbytes != self.nbytes:
            raise WireError(
                f"a gradient of {nbytes} bytes for block {self.id}",
                field="payload_length",
                limit=f"exactly {self.nbytes}" if most is None else f"at most {most}",
            )

    # -- a worker's requests --------------------------------------------------------------------

    def push(self, request: Request, meta: PushMeta, payload: torch.Tensor | None) -> None:
        """Take a gradient (``payload``: its bytes as coded, None for a push without gradient).

        It is answered when every counted replica holds it: in synchronous rounds as part of the
        round's mean, otherwise applied.
        """
        header = request.header
        if self._must_wait(request, meta.commit, lambda: self.push(request, meta, payload)):
            return
        if not self._is_up_to(request, meta.commit):
            return
        began_ns = self.spans.begin()
        try:
            self._check(meta)
            staged = self._staged(request, meta, payload)
            self.spans.end("stage", began_ns, block=self.id, round_=header.round)
        except (CodecError, WireError) as error:
            _refuse(request, str(error))
            return
        push = Push(
            worker=header.worker,
            seq=header.seq,
            round=header.round,
            generation=meta.generation,
            pushers=meta.pushers,
        )
        self._take(request, push, staged, 0 if payload is None else payload.nbytes)

    def _take(self, request: Request, push: Push, staged: Staged, nbytes: int) -> None:
        header = request.header
        outcome = self._replica.push(push)
        self._staging.keep_only(self._replica.staged)
        match outcome:
            case PushOutcome.STALE_GENERATION:
                request.answer(Status.STALE_GENERATION)
            case PushOutcome.OUT_OF_TURN:
                request.answer(Status.CONFLICT)
            case PushOutcome.REPEATED:
                self.perform(self.replication.answer_when_durable(request))
            case PushOutcome.HELD:
                self._staging.hold(header.worker, request)
            case PushOutcome.APPLY:
                self._count(nbytes)
                self._update(request, push, staged)
            case PushOutcome.STAGE | PushOutcome.PREPARE:
                self._staging.hold(header.worker, request)
                self._count(nbytes)
                self._stage(header.worker, staged)
                if outcome is PushOutcome.PREPARE:
                    self._prepare()

    def _stage(self, worker: WorkerId, staged: Staged) -> None:
        if not self._staging.gradients:
            self._first_push_ns = self.spans.begin()
        self._staging.take(worker, staged)

    def _count(self, nbytes: int) -> None:
        self.pushes += 1
        self.counts.pushes += 1
        self.counts.pushed_bytes += nbytes

    def _staged(self, request: Request, meta: PushMeta, payload: torch.Tensor | None) -> Staged:
        self.meter.nbytes += 0 if payload is None else payload.nbytes
        empty = payload is None or request.header.flags & FLAG_EMPTY
        gradient = None if empty else self._decoded(payload)  # type: ignore[arg-type]
        place = meta.place
        if place is not None and gradient is not None and not self._finite.looks_at_some:
            gradient, place = gradient.clone(), None  # what is applied is what was looked at
        self._finite.check(gradient)
        return Staged(
            gradient,
            meta.weight,
            meta.hyper,
            meta.rank,
            lent=place is not None,
            kept=place is not None and place.kept,
        )

    def _decoded(self, payload: torch.Tensor) -> torch.Tensor:
        """A pushed gradient in the block's shape: decoded as float32, else as the block has it."""
        if self._codec is None:
            return self.tensor.gradient_from(payload)
        return self._codec.decode(bytes_of(payload), self.tensor.block.numel)

    def _check(self, meta: PushMeta) -> None:
        """Raise for what is wrong with a push, and stays wrong."""
        if not (math.isfinite(meta.weight) and meta.weight > 0):
            raise WireError(f"weight {meta.weight}: must be finite and above 0", field="weight")
        if meta.codec != self._codec_name:
            raise WireError(
                f"a gradient coded with {meta.codec!r}", field="codec", limit=self._codec_name
            )
        self.tensor.check_options(meta.hyper)

    def read(self, request: Request, meta: PullMeta) -> None:
        """Answer with the value, the state or the tally, no older than what the request proves."""
        if self._must_wait(request, meta.commit, lambda: self.read(request, meta)):
            return
        if not self._is_up_to(request, meta.commit):
            return
        if not (self._replica.initialized and self._replica.has(meta.floor)):
            request.answer(Status.BEHIND)
            return
        if not self._replica.in_rounds:
            # As of now: a push that is applied while this waits may be lost yet.
            self._answers[request] = self._answer(request)
        self.perform(self.replication.answer_when_durable(request))

    def initialize(self, request: Request, meta: StateMeta, payload: memoryview) -> None:
        """Take the block's first value; refused once a push has come.

        A worker may load what another has loaded that pushes already: then this is what is here.
        """
        if not self._replica.untrained:
            untouched = not self._replica.applied and self._replica.round == request.header.round
            if untouched and self.tensor.holds(meta, payload):
                self.perform(self.replication.answer_when_durable(request))
            else:
                request.answer(Status.CONFLICT)
            return
        self.tensor.load(meta, payload)
        meta = msgspec.structs.replace(meta, round=request.header.round)
        version = self._replica.initialize(meta.round, _digest_of(payload))
        self._streams.publish(self, OpMeta(version=version, initial=meta), payload)
        self.perform(self.replication.answer_when_durable(request))

    # -- checkpoints ----------------------------------------------------------------------------

    def save(self, request: Request, meta: SaveMeta) -> None:
        """Have the block written for a checkpoint, unless that was asked for before."""
        if self._saver is None:
            _refuse(request, "this server writes no checkpoints")
            return
        if self._save is None or self._save.draft != meta.draft:
            if not self._is_up_to(request, meta.proof.commit):
                return
            replica, commit = self._replica, meta.proof.commit
            if not (replica.initialized and replica.has(meta.proof.floor)):
                request.answer(Status.BEHIND)
                return
            exact = meta.exact and replica.in_rounds
            if exact and commit is not None and replica.round != commit.round:
                request.answer(Status.CONFLICT)
                return
            self._begin_save(meta, replica.round if exact else None)
        assert self._save is not None
        if meta.written:
            self._save.ask(request)
        else:
            request.answer(Status.OK)

    def _begin_save(self, meta: SaveMeta, limit: Round | None) -> None:
        assert self._saver is not None
        if self._save is not None:
            self._save.give_up()
        take, answer = self._copied, self._answer_saved
        self._save = Save(meta.draft, self.id, limit, take, answer, earlier=meta.earlier)
        self._saver.add(self._save)

    def _copied(self) -> tuple[StateMeta, int, bytes]:
        if self._broken:
            raise PluginError(self._broken)
        state, payload = self.tensor.dump(for_file=True)
        state = msgspec.structs.replace(state, round=self._replica.round)
        return state, self.replication.version, payload

    def _answer_saved(self, request: Request, saved: SavedMeta) -> None:
        # What is applied at once may be lost yet, and a checkpoint must not know of it then.
        self._answers[request] = encode(saved), None
        self.perform(self.replication.answer_when_durable(request))

    def _must_wait(
        self, request: Request, commit: Commit | None, go_on: Callable[[], None]
    ) -> bool:
        """Hold a request that would carry the block past a round that is yet to be copied."""
        save = self._save
        if save is None or commit is None or not self._is_held(commit):
            return False
        assert self._saver is not None
        save.held.append((request, go_on))
        self._saver.hurry(save)
        return True

    def _answer(self, request: Request) -> tuple[bytes, bytes | None]:
        match request.header.kind:
            case Kind.PULL:
                # In rounds a newer version is one that is prepared: the value has none of it.
                replication = self.replication
                version = replication.durable if self._replica.in_rounds else replication.version
                meta = ValueMeta(version, self._replica.round)
                self.meter.nbytes += self.nbytes
                self.counts.pulls += 1
                self.counts.pulled_bytes += self.nbytes
                if request.into is None:
                    return encode(meta), self.tensor.value_bytes()
                if not request.connection.closed:  # else the worker may have given it to others
                    self.tensor.write_value(request.into)
                return encode(meta), None
            case Kind.STATE:
                state, payload = self._state()
                return encode(state), payload
            case _:
                return encode(AuditMeta(self._tally_of(request.header.worker))), None

    def answer_durable(self, request: Request) -> None:
        if request.header.kind in (Kind.PULL, Kind.STATE, Kind.STATUS, Kind.SAVE):
            answer = self._answers.pop(request, None)
            request.answer(Status.OK, *(answer or self._answer(request)))
        elif request.header.flags & FLAG_MEASURE and self._replica.prepared is not None:
            request.answer(Status.OK, encode(MeasureMeta(self._prepared.norm)))
        else:  # a push or an initial value: its sender needs no copy back
            request.answer(Status.OK)

    def _state(self) -> tuple[StateMeta, bytes]:
        state, payload = self.tensor.dump()
        return msgspec.structs.replace(state, round=self._replica.round), payload

    def _tally_of(self, worker: WorkerId) -> Tally:
        row = self._replica.applied.get(worker)
        return row.tally if row else Tally()

    # -- rounds ---------------------------------------------------------------------------------

    def _is_up_to(self, request: Request, commit: Commit | None) -> bool:
        """Apply the round that ``commit`` proves, if need be; answer the request if that fails."""
        settled = self._settled(commit)
        if self._broken:
            _refuse(request, self._broken)
        elif settled is Settled.MISSING:
            request.answer(Status.BEHIND)
        return not self._broken and settled is not Settled.MISSING

    def _settled(self, commit: Commit | None) -> Settled:
        """Do what a proof of ``commit`` asks for; returns DONE, or MISSING."""
        while (settled := self._replica.settle(commit)) not in (Settled.DONE, Settled.MISSING):
            assert commit is not None
            if settled is Settled.APPLY:
                self._apply(commit)
            elif settled is Settled.SKIP:
                self._skip(commit)
            else:
                self._publish(self._replica.empty_round(commit), PreparedGradient(None, {}))
        return settled

    def _skip(self, commit: Commit) -> None:
        self._count_void()
        self._replica.skip(commit)
        self._prepared = PreparedGradient(None, {})
        self._staging.refuse(Status.STALE_GENERATION)

    def _prepare(self) -> None:
        """The round's last gradient has come: hold their mean here and at every replica."""
        self.spans.end("wait", self._first_push_ns, block=self.id)
        began_ns = self.spans.begin()
        mean, waiting = self._staging.taken()
        gradient = self.tensor.gradient_of(mean.gradient)
        prepared = PreparedGradient(gradient, mean.hyper, mean.lent, mean.kept)
        if self.replication.peers or not mean.kept:
            prepared = prepared.owned()
        self._finite.note(prepared.gradient)
        self.spans.end("stage", began_ns, block=self.id)
        self._publish(self._replica.staged_round(), prepared)
        for request in waiting:
            self.perform(self.replication.answer_when_durable(request))

    def _count_void(self) -> None:
        """What is prepared here will not be applied: its workers push again, those that live."""
        void = self._replica.prepared
        if void is not None and self.replication.role is Role.PRIMARY:
            self.counts.discarded += len(void.pushes)

    def _publish(self, op: RoundOp, prepared: PreparedGradient) -> None:
        self._count_void()
        version = self._replica.prepare(op)
        self._prepared = prepared
        base = self._replica.last
        meta = OpMeta(version=version, op=op, hyper=prepared.hyper, commit=base)
        self._streams.publish(self, meta, _payload_of(prepared.gradient))

    def _apply(self, commit: Commit) -> None:
        """Apply the prepared round; a small block's small siblings take theirs in the same step.

        What a commit proves it proves of every block, whichever hears of it first.
        """
        together = [self] if self.is_due(commit) else []
        if together and self._siblings is not None and self._siblings.swept != commit:
            self._siblings.swept = commit
            others = (each for each in self._siblings.hosted.values() if each is not self)
            together += [
                each for each in others if isinstance(each, ParameterBlock) and each.is_due(commit)
            ]
        if len(together) < 2:
            self.step(*self.take_prepared(commit.scale))
            return
        groups: dict[int, list[tuple[ParameterBlock, Due]]] = {}
        for block in together:
            gradient, hyper = block.take_prepared(commit.scale)
            if gradient is None:
                block.step(None, hyper)
            else:
                due = Due(block.tensor, gradient, hyper)
                groups.setdefault(block.tensor.group, []).append((block, due))
        for group in groups.values():
            self._step_together(group)

    def is_due(self, commit: Commit) -> bool:
        """Is this a small block whose prepared round ``commit`` lets it apply with others?"""
        return (
            self._is_small
            and not self._broken
            and not self._is_held(commit)
            and self._replica.settle(commit) is Settled.APPLY
            and is_joint(self.tensor)
        )

    def _is_held(self, commit: Commit) -> bool:
        """Is the state of an earlier round yet to be copied for a checkpoint?"""
        return self._save is not None and self._save.holds(commit.round)

    def take_prepared(self, scale: float) -> tuple[torch.Tensor | None, Hyperparameters]:
        """The prepared round counts as applied: its gradient and options, for the step that is."""
        gradient, hyper, lent = self._prepared.gradient, self._prepared.hyper, self._prepared.lent
        if gradient is not None and not self.replication.all_acked:
            gradient = gradient.clone()  # a stream may still send it, and the optimizer write to it
            lent = False
        if gradient is not None and scale != 1.0:
            gradient, lent = (gradient.mul(scale), False) if lent else (gradient.mul_(scale), False)
        if gradient is not None and lent and not self.tensor.only_reads_gradients:
            gradient = gradient.clone()
        self._replica.apply_prepared(scale)
        self._prepared = PreparedGradient(None, {})
        return gradient, hyper

    def _update(self, request: Request, push: Push, staged: Staged) -> None:
        """Apply a push at once, as an op of its own."""
        gradient = self.tensor.gradient_of(staged.gradient)
        if gradient is not None and staged.lent and not self.tensor.only_reads_gradients:
            gradient = gradient.clone()
        self._finite.note(gradient)
        sent = gradient.clone() if gradient is not None and self.replication.peers else None
        self.step(gradient, staged.hyper)
        if self._broken:
            _refuse(request, self._broken)
            return
        op = RoundOp(push.round, push.generation, ((push.worker, push.seq),))
        meta = OpMeta(version=self._replica.update(op), op=op, hyper=staged.hyper, at_once=True)
        self._streams.publish(self, meta, _payload_of(sent))
        self.perform(self.replication.answer_when_durable(request))

    def step(self, gradient: torch.Tensor | None, hyper: Hyperparameters) -> None:
        began_s = time.monotonic()
        began_ns = self.spans.begin()
        try:
            self.tensor.step(gradient, hyper)
            self.spans.end("apply", began_ns, block=self.id, round_=self._replica.round)
            self.count_step(time.monotonic() - began_s)
        except PluginError as error:
            self.fail(error)

    def _step_together(self, group: Sequence[tuple[ParameterBlock, Due]]) -> None:
        began_s = time.monotonic()
        began_ns = self.spans.begin()
        try:
            step_together([due for _, due in group])
            self.spans.end("apply", began_ns, block=self.id, round_=self._replica.round)
            spent_s = (time.monotonic() - began_s) / len(group)
            for block, _ in group:
                block.count_step(spent_s)
        except PluginError as error:
            for block, _ in group:
                block.fail(error)

    def count_step(self, spent_s: float) -> None:
        self.meter.apply_s += spent_s
        self.counts.apply_s += spent_s
        self.counts.steps += 1

    def fail(self, error: PluginError) -> None:
        log.error("job=%s block=%s is broken", self.job, self.id, exc_info=error)
        self._broken = str(error)

    # -- replication ----------------------------------------------------------------------------

    def snapshot(self) -> tuple[SnapshotMeta, bytes]:
        replica = self._replica
        state, payload = self._state()
        prepared = None
        if replica.prepared is not None:
            gradient = _payload_of(self._prepared.gradient) or b""
            prepared = Prepared(replica.prepared, self._prepared.hyper, len(gradient))
            payload += gradient
        meta = SnapshotMeta(
            version=self.replication.version,
            history=self.replication.history,
            round=replica.round,
            generation=replica.generation,
            initialized=replica.initialized,
            applied=replica.applied,
            state=state,
            prepared=prepared,
        )
        return meta, payload

    def install(self, meta: SnapshotMeta, payload: memoryview) -> None:
        if meta.state is None:
            raise WireError("a block's snapshot without its numbers", field="state")
        prepared = meta.prepared
        end = len(payload) - (prepared.nbytes if prepared else 0)
        if not 0 <= end <= len(payload):
            raise WireError("a prepared gradient that is not there", field="prepared")
        received = self._received(
            memoryview(bytearray(payload[end:])), prepared.hyper if prepared else {}
        )
        self.tensor.load(meta.state, payload[:end])
        self._broken = ""
        replica = self._replica
        replica.drop_staged()
        replica.round, replica.generation = meta.round, meta.generation
        replica.initialized, replica.applied = meta.initialized, dict(meta.applied)
        replica.prepared = prepared.op if prepared else None
        self._prepared = received
        self.replication.install(meta.version, meta.history)
        self._staging.refuse(Status.FENCED)

    def follow(self, op: OpMeta, payload: memoryview | None) -> None:
        if op.initial is not None:
            if payload is None:
                raise WireError("an initial value without its numbers", field="payload_length")
            self.tensor.load(op.initial, payload)
            self._replica.initialized, self._replica.round = True, op.initial.round
            self.replication.follow(_digest_of(payload))
            return
        if op.op is None:
            raise WireError(f"no op for block {self.id}", field="op")
        received = self._received(payload, op.hyper)
        self._catch_up(op.commit)
        if op.at_once:
            self.step(received.gradient, received.hyper)
        if self._broken:  # not to be promoted: it gets a snapshot instead
            raise WireError(f"block {self.id} cannot follow: {self._broken}", field="op")
        if op.at_once:
            self._replica.update(op.op, following=True)
        else:
            self._replica.prepare(op.op, following=True)
            self._prepared = received

    def _catch_up(self, commit: Commit | None) -> None:
        """Apply what the primary had applied before an op. Raises WireError where it is missing."""
        while (settled := self._replica.settle(commit)) is not Settled.DONE:
            assert commit is not None
            if settled is Settled.APPLY:
                self._apply(commit)
            elif settled is Settled.SKIP:
                self._skip(commit)
            else:
                raise WireError(f"an op that does not follow on block {self.id}", field="op")

    def _received(self, payload: memoryview | None, hyper: dict[str, object]) -> PreparedGradient:
        self.tensor.check_options(hyper)
        if not payload:
            return PreparedGradient(None, hyper)
        wanted = self.tensor.nbytes_kept
        if len(payload) != wanted:
            raise WireError(
                f"a gradient of {len(payload)} bytes for block {self.id}",
                field="payload_length",
                limit=f"exactly {wanted}",
            )
        gradient = self.tensor.replicated(torch.frombuffer(payload, dtype=torch.uint8))
        return PreparedGradient(gradient, hyper)

    def adopt(self, entry: Entry) -> None:
        role = self.replication.role
        super().adopt(entry)
        if self.replication.role is not role:
            self.meter = Meter(time.monotonic())
        if self.replication.peers or self.replication.role is not Role.PRIMARY:
            # A worker keeps it for who was the block's only replica, and for no other.
            self._prepared = self._prepared.owned()
        if self.replication.role is not Role.PRIMARY:
            self.refuse_waiting()

    def refuse_waiting(self) -> None:
        self._answers.clear()
        if self._save is not None:
            self._save.give_up()
            self._save = None
        self._replica.drop_staged()
        self._staging.refuse(Status.FENCED)

    def free(self) -> None:
        """The table lets go of a freed block, and with it of its memory."""


def _digest_of(initial: memoryview) -> int:
    return mix(zlib.crc32(initial))


def _payload_of(gradient: torch.Tensor | None) -> memoryview | None:
    return None if gradient is None else bytes_of(gradient)


def _refuse(request: Request, reason: str) -> None:
    request.answer(Status.REFUSED, encode(RefusalMeta(reason)))
