"""A hosted block of parameters: requests in, staged gradients, whole rounds applied."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from elasticps.core.audit import Tally, mix
from elasticps.core.blocks import Hyperparameters
from elasticps.core.ids import JobKey, ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.core.replica import (
    Commit,
    PullOutcome,
    Push,
    PushOutcome,
    Replica,
    RoundOp,
)
from elasticps.core.replication import Replication, Role
from elasticps.errors import PluginError, WireError
from elasticps.server.hosted import Hosted, Request, Streams
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.frame import FLAG_EMPTY, Kind, Status
from elasticps.wire.messages import (
    AuditMeta,
    OpMeta,
    PullMeta,
    PushMeta,
    RefusalMeta,
    SnapshotMeta,
    StateMeta,
    ValueMeta,
    encode,
)
from elasticps.wire.tensors import bytes_of

log = logging.getLogger(__name__)

_PULL_STATUS = {
    PullOutcome.NOT_STAGED: Status.NOT_STAGED,
    PullOutcome.EMPTY: Status.BEHIND,
    PullOutcome.GAP: Status.CONFLICT,
}
_PUSH_STATUS = {
    PushOutcome.REPEATED: Status.OK,
    PushOutcome.STALE_GENERATION: Status.STALE_GENERATION,
    PushOutcome.OUT_OF_TURN: Status.CONFLICT,
}


@dataclass(frozen=True, slots=True)
class _Staged:
    gradient: torch.Tensor | None
    weight: float
    hyper: Hyperparameters


class ParameterBlock(Hosted):
    """One replica of one block of parameters."""

    def __init__(self, job: JobKey, tensor: TensorBlock, me: ServerId, streams: Streams) -> None:
        super().__init__(job, tensor.block.id, streams)
        self.pushes = 0
        self._tensor = tensor
        self._replica = Replica(me=me)
        self._staged: dict[WorkerId, _Staged] = {}
        self._parked: list[tuple[Request, Commit]] = []
        self._broken = ""

    @property
    def replication(self) -> Replication:
        return self._replica.replication

    @property
    def nbytes(self) -> int:
        return self._tensor.nbytes

    @property
    def nbytes_held(self) -> int:
        return self._tensor.nbytes_held

    # -- a worker's requests --------------------------------------------------------------------

    def push(self, request: Request, meta: PushMeta, payload: torch.Tensor | None) -> None:
        """Stage a gradient (``payload``: its bytes, None for a push without gradient)."""
        header = request.header
        objection = self._broken or self._objection(meta)
        if objection:
            _refuse(request, objection)
            return
        push = Push(
            worker=header.worker, seq=header.seq, round=header.round, generation=meta.generation
        )
        outcome = self._replica.push(push)
        if outcome is not PushOutcome.STAGE:
            request.answer(_PUSH_STATUS[outcome])
            return
        self._forget_unstaged()
        gradient = None if header.flags & FLAG_EMPTY or payload is None else payload
        if gradient is not None:
            gradient = self._tensor.gradient_from(gradient)
        self._staged[header.worker] = _Staged(gradient, meta.weight, meta.hyper)
        self.pushes += 1
        request.answer(Status.OK)
        self._retry_parked()

    def pull(self, request: Request, meta: PullMeta) -> None:
        """Answer with the value as of the round that the commit proves, applying it first."""
        outcome, op = self._replica.pull(request.header.worker, meta.commit)
        if op is not None and not self._broken:
            self._apply(op)
        if self._broken:
            _refuse(request, self._broken)
        elif outcome in (PullOutcome.VALUE, PullOutcome.APPLY):
            self.perform(self.replication.answer_when_durable(request))
        elif outcome is PullOutcome.WAIT and meta.commit is not None:
            self._parked.append((request, meta.commit))
        else:
            request.answer(_PULL_STATUS[outcome])

    def _objection(self, meta: PushMeta) -> str:
        """What is wrong with a push, and stays wrong; empty when nothing is."""
        if not (math.isfinite(meta.weight) and meta.weight > 0):
            return f"weight {meta.weight}: must be finite and above 0"
        try:
            self._tensor.check_options(meta.hyper)
        except WireError as error:
            return str(error)
        return ""

    def initialize(self, request: Request, meta: StateMeta, payload: memoryview) -> None:
        """Take the block's first value; refused once a round has been applied."""
        if self._replica.round > 0:
            request.answer(Status.CONFLICT)
            return
        self._tensor.load(meta, payload)
        version = self._replica.initialize(_INITIAL_DIGEST)
        self._forget_unstaged()
        self._streams.publish(self, OpMeta(version=version, initial=meta), payload)
        self.perform(self.replication.answer_when_durable(request))

    def state(self, request: Request) -> None:
        """Answer with value and optimizer state."""
        meta, payload = self._tensor.dump()
        request.answer(Status.OK, encode(meta), payload)

    def audit(self, request: Request) -> None:
        """Answer with the tally of what was applied of the asking worker."""
        row = self._replica.applied.get(request.header.worker)
        request.answer(Status.OK, encode(AuditMeta(row.tally if row else Tally())))

    def _retry_parked(self) -> None:
        parked, self._parked = self._parked, []
        for request, commit in parked:
            self.pull(request, PullMeta(commit))

    def _apply(self, op: RoundOp) -> None:
        staged = [self._staged[worker] for worker, _ in op.pushes]
        hyper = staged[0].hyper if staged else {}
        gradient = _mean(staged)
        # Backups get the gradient as it is now: the optimizer may write to it.
        sent = gradient.clone() if gradient is not None and self.replication.peers else gradient
        try:
            self._tensor.step(gradient, hyper)
        except PluginError as error:
            log.exception("job=%s block=%s is broken", self.job, self.id)
            self._broken = str(error)
            return
        version = self._replica.apply(op)
        self._forget_unstaged()
        meta = OpMeta(
            version=version,
            round=op.round,
            generation=op.generation,
            pushes=op.pushes,
            hyper=hyper,
        )
        payload = None if sent is None else bytes_of(sent)
        self._streams.publish(self, meta, payload)

    def _forget_unstaged(self) -> None:
        """The gradients follow what the replica remembers as staged."""
        self._staged = {
            worker: staged
            for worker, staged in self._staged.items()
            if worker in self._replica.staged
        }

    # -- replication ----------------------------------------------------------------------------

    def snapshot(self) -> tuple[SnapshotMeta, bytes]:
        state, payload = self._tensor.dump()
        meta = SnapshotMeta(
            version=self.replication.version,
            history=self.replication.history,
            round=self._replica.round,
            generation=self._replica.generation,
            initialized=self._replica.initialized,
            applied=self._replica.applied,
            state=state,
        )
        return meta, payload

    def install(self, meta: SnapshotMeta, payload: memoryview) -> None:
        if meta.state is None:
            raise WireError("a block's snapshot without its numbers", field="state")
        self._tensor.load(meta.state, payload)
        replica = self._replica
        replica.drop_staged()
        replica.round, replica.generation = meta.round, meta.generation
        replica.initialized, replica.applied = meta.initialized, dict(meta.applied)
        self.replication.install(meta.version, meta.history)
        self._forget_unstaged()

    def follow(self, op: OpMeta, payload: memoryview | None) -> None:
        if op.initial is not None:
            if payload is None:
                raise WireError("an initial value without its numbers", field="payload_length")
            self._tensor.load(op.initial, payload)
            self._replica.initialized = True
            self.replication.follow(_INITIAL_DIGEST)
            return
        gradient = None
        if payload is not None:
            if len(payload) != self.nbytes:
                raise WireError(
                    f"a gradient of {len(payload)} bytes for block {self.id}",
                    field="payload_length",
                    limit=f"exactly {self.nbytes}",
                )
            gradient = self._tensor.gradient_from(torch.frombuffer(payload, dtype=torch.uint8))
        self._tensor.step(gradient, op.hyper)
        round_op = RoundOp(round=op.round, generation=op.generation, pushes=op.pushes)
        self._replica.apply(round_op, following=True)

    def answer_durable(self, request: Request) -> None:
        if request.header.kind is Kind.INIT:  # its sender needs no copy back
            request.answer(Status.OK)
            return
        meta = ValueMeta(self.replication.version, self._replica.round)
        request.answer(Status.OK, encode(meta), self._tensor.value_bytes())

    def adopt(self, entry: Entry) -> None:
        super().adopt(entry)
        if self.replication.role is not Role.PRIMARY:
            self.refuse_waiting()

    def refuse_waiting(self) -> None:
        parked, self._parked = self._parked, []
        for request, _ in parked:
            request.answer(Status.FENCED)
        self._replica.drop_staged()
        self._forget_unstaged()

    def free(self) -> None:
        """The table lets go of a freed block, and with it of its memory."""


_INITIAL_DIGEST = mix(0)


def _refuse(request: Request, reason: str) -> None:
    request.answer(Status.REFUSED, encode(RefusalMeta(reason)))


def _mean(staged: list[_Staged]) -> torch.Tensor | None:
    """The workers' mean gradient by samples, summed in rank order.

    Half precision is summed in single, for a batch's sum may not fit it; others in the first one's
    memory.
    """
    total = sum(item.weight for item in staged)
    held = [(item.gradient, item.weight) for item in staged if item.gradient is not None]
    if not held:
        return None
    first, weight = held[0]
    if weight == total:
        return first
    mean = first.to(torch.promote_types(first.dtype, torch.float32)).mul_(weight)
    for gradient, weight in held[1:]:
        mean.add_(gradient, alpha=weight)
    return mean.div_(total).to(first.dtype)
