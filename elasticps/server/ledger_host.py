"""A hosted ledger: commands in, each one an op; answers go to the workers that wait for them."""

from __future__ import annotations

import msgspec

from elasticps.core.audit import mix
from elasticps.core.ids import LEDGER, JobKey, ServerId, WorkerId
from elasticps.core.ledger import Answer, Command, Ledger, Observe
from elasticps.core.plan import Entry
from elasticps.core.replication import Replication, Role
from elasticps.errors import WireError
from elasticps.server.hosted import Hosted, Request, Streams
from elasticps.wire.frame import Status
from elasticps.wire.messages import OpMeta, SnapshotMeta

_commands = msgspec.msgpack.Decoder(Command)
_ledgers = msgspec.msgpack.Decoder(Ledger)


class LedgerHost(Hosted):
    """One replica of a job's ledger."""

    def __init__(self, job: JobKey, start_workers: int, me: ServerId, streams: Streams) -> None:
        super().__init__(job, LEDGER, streams)
        self._ledger = Ledger(start_workers=start_workers)
        self._replication = Replication(me=me)
        self._waiting: dict[WorkerId, Request] = {}
        self._answers: dict[Request, bytes] = {}

    @property
    def replication(self) -> Replication:
        return self._replication

    @property
    def nbytes_held(self) -> int:
        return len(msgspec.msgpack.encode(self._ledger))

    @property
    def round(self) -> int:
        return self._ledger.round

    def command(self, request: Request, body: bytes) -> None:
        """Carry out a worker's command; its answer may come with a later one."""
        command = _decoded(body)
        worker = request.header.worker
        if isinstance(command, Observe) or command.worker != worker:
            raise WireError("a worker may speak for itself alone", field="worker")
        # An older question of the same worker is one whose answer it has given up on.
        self._waiting[worker] = request
        self._execute(command, body)

    def observe(self, workers: tuple[WorkerId, ...], revision: int) -> None:
        """etcd's list of the living, as this server's daemon saw it. For the primary alone."""
        if self._replication.role is not Role.PRIMARY or revision <= self._ledger.observed:
            return
        command = Observe(workers, revision)
        self._execute(command, msgspec.msgpack.encode(command))
        self._dismiss_the_dead()

    def _dismiss_the_dead(self) -> None:
        """The ledger has no answer for whom it declared dead: one that lives may ask again."""
        known = {*self._ledger.members, *self._ledger.joining}
        for worker in self._waiting.keys() - known:
            self._waiting.pop(worker).answer(Status.FENCED)

    def _execute(self, command: Command, body: bytes) -> None:
        version = self._replication.record(_digest(body))
        answers = self._ledger.apply(command)
        self._streams.publish(self, OpMeta(version=version, command=body), None)
        for worker, answer in answers:
            self._answer(worker, answer)

    def _answer(self, worker: WorkerId, answer: Answer) -> None:
        request = self._waiting.pop(worker, None)
        if request is not None:
            self._answers[request] = msgspec.msgpack.encode(answer)
            self.perform(self._replication.answer_when_durable(request))

    def answer_durable(self, request: Request) -> None:
        request.answer(Status.OK, self._answers.pop(request))

    def adopt(self, entry: Entry) -> None:
        super().adopt(entry)
        if self._replication.role is not Role.PRIMARY:
            self.refuse_waiting()

    def refuse_waiting(self) -> None:
        for request in self._waiting.values():
            request.answer(Status.FENCED)
        self._waiting.clear()
        self._answers.clear()

    def snapshot(self) -> tuple[SnapshotMeta, bytes]:
        meta = SnapshotMeta(
            version=self._replication.version,
            history=self._replication.history,
            ledger=msgspec.msgpack.encode(self._ledger),
        )
        return meta, b""

    def install(self, meta: SnapshotMeta, payload: memoryview) -> None:
        try:
            self._ledger = _ledgers.decode(meta.ledger)
        except msgspec.MsgspecError as error:
            raise WireError(f"not a ledger: {error}", field="ledger") from error
        self._replication.install(meta.version, meta.history)

    def follow(self, op: OpMeta, payload: memoryview | None) -> None:
        self._ledger.apply(_decoded(op.command))
        self._replication.follow(_digest(op.command))

    def free(self) -> None:
        """The table lets go of a freed ledger, and with it of its memory."""


def _decoded(body: bytes) -> Command:
    try:
        command: Command = _commands.decode(body)
    except msgspec.MsgspecError as error:
        raise WireError(f"not a ledger command: {error}", field="meta") from error
    return command


def _digest(body: bytes) -> int:
    """A number for the command's bytes, for the replica's running hash."""
    digest = 0
    for offset in range(0, len(body), 8):
        digest = mix(digest ^ int.from_bytes(body[offset : offset + 8], "little"))
    return digest
