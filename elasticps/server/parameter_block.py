"""A hosted block of parameters: a worker's requests in, gradients staged, values out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import torch

from elasticps.core.audit import Tally
from elasticps.core.ids import Round, WorkerId
from elasticps.core.replica import Commit, Push, PushOutcome, RoundOp, Settled
from elasticps.errors import CodecError, PluginError, WireError
from elasticps.server.block_rounds import payload_of
from elasticps.server.hosted import Request
from elasticps.server.replicated_block import ReplicatedBlock, digest_of
from elasticps.server.saving import Save
from elasticps.server.staging import PreparedGradient, Staged
from elasticps.wire.frame import FLAG_EMPTY, FLAG_MEASURE, Kind, Status
from elasticps.wire.messages import (
    AuditMeta,
    MeasureMeta,
    OpMeta,
    PullMeta,
    PushMeta,
    RefusalMeta,
    SavedMeta,
    SaveMeta,
    StateMeta,
    ValueMeta,
    encode,
)
from elasticps.wire.tensors import bytes_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)


class ParameterBlock(ReplicatedBlock):
    """One replica of one block of parameters, as workers ask for it."""

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
        version = self._replica.initialize(meta.round, digest_of(payload))
        self._streams.publish(self, OpMeta(version=version, initial=meta), payload)
        self.perform(self.replication.answer_when_durable(request))

    # -- checkpoints ----------------------------------------------------------------------------

    def save(self, request: Request, meta: SaveMeta) -> None:
        """Have the block written for a checkpoint, unless that was asked for before."""
        if self._saver is None:
            _refuse(request, "this server writes no checkpoints")
            return
        if self._save is None or self._save.draft != meta.draft:
            if self._must_wait(request, meta.proof.commit, lambda: self.save(request, meta)):
                return
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
        take, answer = self._taken, self._answer_saved
        self._save = Save(meta.draft, self.id, limit, take, answer, earlier=meta.earlier)
        self._saver.add(self._save)

    def _taken(self) -> tuple[StateMeta, int, list[torch.Tensor]]:
        if self._broken:
            raise PluginError(self._broken)
        state, tensors = self.tensor.for_file()
        state = msgspec.structs.replace(state, round=self._replica.round)
        return state, self.replication.version, tensors

    def _answer_saved(self, request: Request, saved: SavedMeta) -> None:
        # What is applied at once may be lost yet, and a checkpoint must not know of it then.
        self._answers[request] = encode(saved), None
        self.perform(self.replication.answer_when_durable(request))

    def _must_wait(
        self, request: Request, commit: Commit | None, go_on: Callable[[], None]
    ) -> bool:
        """Hold a request that would carry the block past a round that is yet to be copied."""
        save = self._save
        if save is None:
            return False
        if commit is None or not self._is_held(commit):
            return False
        assert self._saver is not None
        save.held.append((request, go_on))
        self._saver.hurry(save)
        return True

    def _answer(self, request: Request) -> tuple[bytes, Buffer | None]:
        match request.header.kind:
            case Kind.PULL:
                # In rounds a newer version is one that is prepared: the value has none of it.
                replication = self.replication
                version = replication.durable if self._replica.in_rounds else replication.version
                meta = ValueMeta(version, self._replica.round)
                difference = (
                    None if request.into is not None else self.tensor.difference_from(request.holds)
                )
                if difference is not None:
                    self._count_pulled(len(difference.payload))
                    meta = msgspec.structs.replace(meta, makes=difference.makes)
                    return encode(meta), difference.payload
                self._count_pulled(self.nbytes)
                if request.into is None:
                    return encode(meta), self.tensor.value_bytes()
                # A worker that is gone may have given it to others.
                if request not in self._written and not request.connection.closed:
                    self.tensor.write_value(request.into)
                return encode(meta), None
            case Kind.STATE:
                state, payload = self._state()
                return encode(state), payload
            case _:
                return encode(AuditMeta(self._tally_of(request.header.worker))), None

    def _count_pulled(self, nbytes: int) -> None:
        self.meter.nbytes += nbytes
        self.counts.pulls += 1
        self.counts.pulled_bytes += nbytes

    def answer_durable(self, request: Request) -> None:
        if request.header.kind is Kind.PULL and self.tensor.is_stepping:
            self._awaiting_step.append(request)
            return
        if self._broken and request.header.kind is Kind.PULL:  # since it was found up to date
            _refuse(request, self._broken)
            return
        if request.header.kind in (Kind.PULL, Kind.STATE, Kind.STATUS, Kind.SAVE):
            answer = self._answers.pop(request, None)
            request.answer(Status.OK, *(answer or self._answer(request)))
        elif request.header.flags & FLAG_MEASURE and self._replica.prepared is not None:
            request.answer(Status.OK, encode(MeasureMeta(self._prepared.norm)))
        else:  # a push or an initial value: its sender needs no copy back
            request.answer(Status.OK)

    def _tally_of(self, worker: WorkerId) -> Tally:
        row = self._replica.applied.get(worker)
        return row.tally if row else Tally()

    def _is_up_to(self, request: Request, commit: Commit | None) -> bool:
        """Apply the round that ``commit`` proves, if need be; answer the request if that fails."""
        settled = self._settled(commit, request)
        if self._broken:
            _refuse(request, self._broken)
        elif settled is Settled.MISSING:
            request.answer(Status.BEHIND)
        return not self._broken and settled is not Settled.MISSING

    def _update(self, request: Request, push: Push, staged: Staged) -> None:
        """Apply a push at once, as an op of its own."""
        gradient = self.tensor.gradient_of(staged.gradient)
        if gradient is not None and staged.lent and not self.tensor.only_reads_gradients:
            gradient = gradient.clone()
        self._finite.note([] if gradient is None else [gradient])
        loan = self._streams.room(self, self.tensor.nbytes_kept)
        sent = PreparedGradient(gradient if self.replication.peers else None, staged.hyper)
        sent = sent.lying_in(loan) if loan else sent.copied()
        self.step(gradient, staged.hyper)
        if self._broken:
            _refuse(request, self._broken)
            return
        op = RoundOp(push.round, push.generation, ((push.worker, push.seq),))
        meta = OpMeta(version=self._replica.update(op), op=op, hyper=staged.hyper, at_once=True)
        self._streams.publish(self, meta, payload_of(sent.gradient), sent.loan)
        self.perform(self.replication.answer_when_durable(request))


def _refuse(request: Request, reason: str) -> None:
    request.answer(Status.REFUSED, encode(RefusalMeta(reason)))
