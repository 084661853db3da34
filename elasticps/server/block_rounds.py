"""A block's numbers and its rounds: gradients prepared, and applied when the round is proven."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from elasticps.api.job_codec import JobCodec
from elasticps.core.blocks import Hyperparameters
from elasticps.core.ids import BlockId, ServerId
from elasticps.core.replica import Commit, Replica, RoundOp, Settled
from elasticps.core.replication import Replication, Role
from elasticps.errors import PluginError, WireError
from elasticps.server.aside import StepsAside
from elasticps.server.compute import Share
from elasticps.server.finite import FiniteWatch, SpotCheck
from elasticps.server.gradient_mean import Mean
from elasticps.server.hosted import Hosted, Request, Streams
from elasticps.server.joint_step import SMALL_BYTES, Due, is_joint, step_together
from elasticps.server.meter import Meter
from elasticps.server.saving import Save, Saver
from elasticps.server.staging import PreparedGradient, Staging
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.frame import FLAG_MEASURE, Kind, Status
from elasticps.wire.messages import OpMeta
from elasticps.wire.regions import Mapping as RegionMapping
from elasticps.wire.tallies import JobCounts
from elasticps.wire.tensors import bytes_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Siblings:
    """All that a server hosts of one job, and the newest commit that was shared among them."""

    hosted: Mapping[BlockId, Hosted]
    swept: Commit | None = None


class BlockRounds(Hosted):
    """What a replica of a block holds, and the steps that it makes."""

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
        aside: StepsAside | None = None,
    ) -> None:
        super().__init__(info.job, tensor.block.id, streams, counts)
        self._siblings = siblings
        self._aside = aside
        self._awaiting_step: list[Request] = []
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
        self._borrowed: dict[int, RegionMapping] = {}
        self._answers: dict[Request, tuple[bytes, Buffer | None]] = {}
        self._written: Sequence[Request] = ()
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

    def _settled(self, commit: Commit | None, asked: Request) -> Settled:
        """Do what a proof of ``commit`` in a request asks for; returns DONE, or MISSING."""
        while (settled := self._replica.settle(commit)) not in (Settled.DONE, Settled.MISSING):
            assert commit is not None
            if settled is Settled.APPLY:
                self._apply(commit, [asked])
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
        loan = self._streams.room(self, self.tensor.nbytes_kept)
        room = loan.tensor if loan else None
        prepared, waiting = self._staging.taken(room, apart=self._may_stay_apart)
        if not isinstance(prepared.given, Mean):
            gradient = self.tensor.gradient_of(prepared.given)
            prepared = PreparedGradient(gradient, prepared.hyper, prepared.lent, prepared.kept)
        if loan is not None:
            prepared = prepared.lying_in(loan)
        elif self.replication.peers or not prepared.kept:
            prepared = prepared.owned()
        self._finite.note(prepared.tensors)
        self.spans.end("stage", began_ns, block=self.id)
        self._publish(self._replica.staged_round(), prepared)
        for request in waiting:
            self.perform(self.replication.answer_when_durable(request))

    @property
    def _may_stay_apart(self) -> bool:
        """Does nobody need the mean before it is applied?"""
        return (
            (self.tensor.sums_pieces or self._is_joint)
            and not self.replication.peers
            and not any(each.header.flags & FLAG_MEASURE for each in self._staging.held.values())
        )

    @property
    def _is_joint(self) -> bool:
        """Is this a small block that is stepped with others?"""
        return self._is_small and is_joint(self.tensor)

    def _count_void(self) -> None:
        """What is prepared here will not be applied: its workers push again, those that live."""
        void = self._replica.prepared
        if void is not None and self.replication.role is Role.PRIMARY:
            self.counts.discarded += len(void.pushes)

    def _publish(self, op: RoundOp, prepared: PreparedGradient) -> None:
        self._count_void()
        version = self._replica.prepare(op)
        self._prepared = prepared
        if self.replication.peers:  # for nobody else a mean is summed that stays apart
            base = self._replica.last
            meta = OpMeta(version=version, op=op, hyper=prepared.hyper, commit=base)
            self._streams.publish(self, meta, payload_of(prepared.gradient), prepared.loan)

    def _apply(self, commit: Commit, asked: Sequence[Request] = ()) -> None:
        """Apply the prepared round; a small block's small siblings take theirs in the same step.

        What a commit proves it proves of every block, whichever hears of it first. ``asked``:
        requests with the proof, whose places get the value as it is made.
        """
        together = [self] if self.is_due(commit) else []
        if together and self._siblings is not None and self._siblings.swept != commit:
            self._siblings.swept = commit
            others = (each for each in self._siblings.hosted.values() if each is not self)
            together += [
                each for each in others if isinstance(each, BlockRounds) and each.is_due(commit)
            ]
        if len(together) < 2:
            aside = self._aside if all(map(self._may_step_aside, asked)) and asked else None
            gradient, hyper = self.take_prepared(commit.scale)
            if aside is None or not self._begin_aside(aside, gradient, hyper):
                self._step_for(asked, gradient, hyper)
            return
        groups: dict[int, list[tuple[BlockRounds, Due]]] = {}
        for block in together:
            gradient, hyper = block.take_prepared(commit.scale)
            if gradient is None:
                block.step(gradient, hyper)
            else:
                due = Due(block.tensor, gradient, hyper)
                groups.setdefault(block.tensor.group, []).append((block, due))
        for group in groups.values():
            self._step_together(group)

    def is_due(self, commit: Commit) -> bool:
        """Is this a small block whose prepared round ``commit`` lets it apply with others?"""
        return (
            self._is_joint
            and not self._broken
            and not self._is_held(commit)
            and self._replica.settle(commit) is Settled.APPLY
        )

    def _is_held(self, commit: Commit) -> bool:
        """Is the state of an earlier round yet to be copied for a checkpoint?"""
        return self._save is not None and self._save.holds(commit.round)

    def take_prepared(self, scale: float) -> tuple[torch.Tensor | Mean | None, Hyperparameters]:
        """The prepared round counts as applied: its gradient and options, for the step that is."""
        given, hyper, lent = self._prepared.given, self._prepared.hyper, self._prepared.lent
        if isinstance(given, Mean):
            given = replace(given, scale=scale)
        elif given is not None:
            given = self._to_apply(given, scale, lent=lent)
        self._replica.apply_prepared(scale)
        self._prepared = PreparedGradient(None, {})
        assert self._replica.last is not None
        self._streams.prove(self, self._replica.last)
        return given, hyper

    def _to_apply(self, gradient: torch.Tensor, scale: float, *, lent: bool) -> torch.Tensor:
        if not self.replication.all_acked:
            gradient = gradient.clone()  # a stream may still send it, and the optimizer write to it
            lent = False
        if scale != 1.0:
            return gradient.mul(scale) if lent else gradient.mul_(scale)
        return gradient.clone() if lent and not self.tensor.only_reads_gradients else gradient

    def _step_for(
        self,
        asked: Sequence[Request],
        gradient: torch.Tensor | Mean | None,
        hyper: Hyperparameters,
    ) -> None:
        if self.step(gradient, hyper, _targets(asked)):
            self.has_written(asked)

    def step(
        self,
        gradient: torch.Tensor | Mean | None,
        hyper: Hyperparameters,
        into: Sequence[torch.Tensor] = (),
    ) -> bool:
        """One step; returns whether the value has been written to ``into`` as well."""
        began_s = time.monotonic()
        began_ns = self.spans.begin()
        self._written = ()
        try:
            written = self.tensor.step(gradient, hyper, into)
            self.spans.end("apply", began_ns, block=self.id, round_=self._replica.round)
            self.count_step(time.monotonic() - began_s)
        except PluginError as error:
            self.fail(error)
            return False
        return written

    def begin_step(self, commit: Commit, asked: Sequence[Request]) -> Share | None:
        """The step of a large block whose prepared round ``commit`` lets it apply, for threads to
        share out with others'; None where it is not so. ``asked`` as in ``_apply``."""
        if self._broken or self._is_held(commit) or not self.tensor.is_piecewise or self._is_joint:
            return None
        if self._replica.settle(commit) is not Settled.APPLY:
            return None
        gradient, hyper = self.take_prepared(commit.scale)
        self._written = ()
        into = _targets(asked)
        share = self.tensor.begin(gradient, hyper, into)
        if share is None:  # no worker had a gradient, or the options are others now
            self._step_for(asked, gradient, hyper)
            return None

        def ended(error: Exception | None) -> None:
            try:
                share.ended(error)
            except PluginError as failure:
                self.fail(failure)
                return
            if self.tensor.gives_pieces:
                self.has_written(asked)

        return Share(share.pieces, share.work, ended)

    def _may_step_aside(self, asked: Request) -> bool:
        """Is the step one of a large block for a worker who is sent the value, and of a gradient
        that is nobody else's memory?"""
        prepared = self._prepared
        return (
            asked.header.kind is Kind.PULL
            and asked.into is None
            and not (self._is_small or self._broken)
            and not (prepared.lent or prepared.loan)
            and self.tensor.is_piecewise
        )

    def _begin_aside(
        self, aside: StepsAside, gradient: torch.Tensor | Mean | None, hyper: Hyperparameters
    ) -> bool:
        """Leave the step to ``aside``; False where it is to be made here."""
        began_ns, round_ = self.spans.begin(), self._replica.round
        self._written = ()
        share = self.tensor.begin(gradient, hyper, in_one=True)
        if share is None:
            return False

        spent_s: list[float] = []

        def work(thread: int, piece: int) -> None:
            began_s = time.monotonic()
            share.work(thread, piece)
            spent_s.append(time.monotonic() - began_s)

        def ended(error: Exception | None) -> None:
            try:
                share.ended(error)
            except PluginError as failure:
                self.fail(failure)
            self.spans.end("apply", began_ns, block=self.id, round_=round_)
            self.count_step(sum(spent_s))

        step = aside.begin(Share(share.pieces, work, ended), self._answer_stepped)
        self.tensor.leave_to(step)  # and nothing else keeps it: with it goes the gradient's memory
        return True

    def _answer_stepped(self) -> None:
        """The step is made: answer whoever waits for the value."""
        self.tensor.end_step()
        waiting, self._awaiting_step = self._awaiting_step, []
        for request in waiting:
            self._answer_durable(request)

    def begin_joint_step(self, commit: Commit, asked: Sequence[Request]) -> Due | None:
        """The step of a block that ``is_due``, to be made with others'; None where no worker had a
        gradient. ``asked`` as in ``_apply``."""
        gradient, hyper = self.take_prepared(commit.scale)
        self._written = ()
        if gradient is None:
            self.step(gradient, hyper)
            return None
        return Due(self.tensor, gradient, hyper, _targets(asked))

    def has_written(self, asked: Sequence[Request]) -> None:
        """Their places have the value as it is now."""
        self._written = [each for each in asked if each.into is not None]

    def _step_together(self, group: Sequence[tuple[BlockRounds, Due]]) -> None:
        began_s = time.monotonic()
        began_ns = self.spans.begin()
        try:
            step_together([due for _, due in group], self.tensor.threads)
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


def _targets(asked: Sequence[Request]) -> list[torch.Tensor]:
    """Where a value can be written to: a worker that is gone may have given it to others."""
    return [each.into for each in asked if each.into is not None and not each.connection.closed]


def payload_of(gradient: torch.Tensor | None) -> memoryview | None:
    return None if gradient is None else bytes_of(gradient)
