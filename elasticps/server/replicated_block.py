"""A block as one replica of several: its state for a learner, and what a backup follows."""

from __future__ import annotations

import logging
import time
import zlib

import msgspec
import torch

from elasticps.core.audit import mix
from elasticps.core.ids import PlanEpoch
from elasticps.core.plan import Entry
from elasticps.core.replica import Commit, Settled
from elasticps.core.replication import Check, Role
from elasticps.errors import WireError
from elasticps.server.block_rounds import BlockRounds, payload_of
from elasticps.server.loans import MOST_LOANS
from elasticps.server.meter import Meter
from elasticps.server.staging import PreparedGradient
from elasticps.wire.frame import Status
from elasticps.wire.messages import OpMeta, Prepared, SnapshotMeta, StateMeta
from elasticps.wire.regions import Mapping

log = logging.getLogger(__name__)


class ReplicatedBlock(BlockRounds):
    """A block that others have copies of, or that is a copy itself."""

    def snapshot(self) -> tuple[SnapshotMeta, bytes]:
        replica = self._replica
        state, payload = self._state(for_replica=True)
        prepared = None
        if replica.prepared is not None:
            gradient = payload_of(self._prepared.gradient) or b""
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
        self._written = ()
        self._broken = ""
        replica = self._replica
        replica.drop_staged()
        replica.round, replica.generation = meta.round, meta.generation
        replica.initialized, replica.applied = meta.initialized, dict(meta.applied)
        replica.prepared = prepared.op if prepared else None
        self._prepared = received
        self.replication.install(meta.version, meta.history)
        self._staging.refuse(Status.FENCED)

    def borrow(self, number: int, loan: Mapping) -> None:
        """Know memory of the primary's; of such a one's block there are few at a time."""
        self._borrowed[number] = loan
        while len(self._borrowed) > MOST_LOANS:
            del self._borrowed[next(iter(self._borrowed))]

    def borrowed(self, number: int) -> Mapping | None:
        return self._borrowed.get(number)

    def follow(self, op: OpMeta, payload: memoryview | None, *, lent: bool = False) -> None:
        if op.initial is not None:
            if payload is None:
                raise WireError("an initial value without its numbers", field="payload_length")
            self.tensor.load(op.initial, payload)
            self._replica.initialized, self._replica.round = True, op.initial.round
            self.replication.follow(digest_of(payload))
            return
        if op.op is None:
            raise WireError(f"no op for block {self.id}", field="op")
        received = self._received(payload, op.hyper, lent=lent)
        if not self._caught_up(op.commit):
            raise WireError(f"an op that does not follow on block {self.id}", field="op")
        if op.at_once:
            if not self.tensor.only_reads_gradients:
                received = received.owned()
            self.step(received.given, received.hyper)
        if self._broken:  # not to be promoted: it gets a snapshot instead
            raise WireError(f"block {self.id} cannot follow: {self._broken}", field="op")
        if op.at_once:
            self._replica.update(op.op, following=True)
        else:
            self._replica.prepare(op.op, following=True)
            self._prepared = received

    def prove(self, epoch: PlanEpoch, commit: Commit) -> bool:
        """Apply what the primary has applied, ahead of the op that would ask for it.

        False where it is not here.
        """
        check = self.replication.check_proof(epoch)
        return check is Check.OK and not self._broken and self._caught_up(commit)

    def _caught_up(self, commit: Commit | None) -> bool:
        """Apply what the primary had applied before an op; False where it is missing."""
        while (settled := self._replica.settle(commit)) is not Settled.DONE:
            assert commit is not None
            if settled is Settled.APPLY:
                self._apply(commit)
            elif settled is Settled.SKIP:
                self._skip(commit)
            else:
                return False
        return True

    def _received(
        self, payload: memoryview | None, hyper: dict[str, object], *, lent: bool = False
    ) -> PreparedGradient:
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
        return PreparedGradient(gradient, hyper, lent=lent)

    def adopt(self, entry: Entry) -> None:
        role = self.replication.role
        super().adopt(entry)
        if self.replication.role is not role:
            self.meter = Meter(time.monotonic())
        if self.replication.peers or self.replication.role is not Role.PRIMARY:
            # A worker keeps it for who was the block's only replica, and for no other.
            self._prepared = self._prepared.owned()
        if self.replication.role is Role.PRIMARY:
            self._borrowed.clear()
        if self.replication.role is not Role.PRIMARY:
            self.refuse_waiting()

    def refuse_waiting(self) -> None:
        self._answer_stepped()
        self._answers.clear()
        if self._save is not None:
            self._save.give_up()
            self._save = None
        self._replica.drop_staged()
        self._staging.refuse(Status.FENCED)

    def free(self) -> None:
        """The table lets go of a freed block, and with it of its memory."""

    def _state(self, *, for_replica: bool = False) -> tuple[StateMeta, bytes]:
        state, payload = self.tensor.dump(for_replica=for_replica)
        return msgspec.structs.replace(state, round=self._replica.round), payload


def digest_of(initial: memoryview) -> int:
    return mix(zlib.crc32(initial))
