"""A hosted ledger: commands in, each one an op; answers go to the workers that wait for them."""

from __future__ import annotations

import msgspec

from elasticps.api.choice import load_choice
from elasticps.api.data_policy import DataPolicy
from elasticps.api.plugins import DATA_POLICIES
from elasticps.core.audit import mix
from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import (
    Answer,
    Attend,
    Command,
    Initialized,
    Inspect,
    Inspected,
    Lookup,
    Observe,
    Question,
    Refused,
    Regenerated,
)
from elasticps.core.consistency import Consistency
from elasticps.core.ids import LEDGER, Generation, ServerId, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.plan import Entry
from elasticps.core.replication import Replication, Role
from elasticps.core.roster import Roster
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import WireError
from elasticps.server.hosted import Hosted, Request, Streams
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.frame import Status
from elasticps.wire.messages import OpMeta, SnapshotMeta
from elasticps.wire.tallies import JobCounts

FEW = 8
"""Of more workers that are late it is none in particular that the others wait for."""

_words = msgspec.msgpack.Decoder(Command | Question)


def ledger_of(info: JobInfo) -> Roster:
    """The kind of ledger that a job's consistency calls for, empty."""
    start, policy = info.start_workers, info.data_policy
    if info.consistency is Consistency.SYNC:
        backups = info.backup_workers
        return Ledger(start_workers=start, backup_workers=backups, data_policy=policy)
    bounded = info.consistency is Consistency.BOUNDED
    staleness = info.staleness if bounded else None
    return ClockLedger(start_workers=start, staleness=staleness, data_policy=policy)


class LedgerHost(Hosted):
    """One replica of a job's ledger. Raises PluginError where its data policy cannot be loaded."""

    def __init__(self, info: JobInfo, me: ServerId, streams: Streams, counts: JobCounts) -> None:
        super().__init__(info.job, LEDGER, streams, counts)
        self._policy = load_choice(
            DATA_POLICIES,
            info.data_policy,
            DataPolicy,  # type: ignore[type-abstract]
            "data_policy",
        )
        self._ledger = ledger_of(info).ruled_by(self._policy)
        self._ledgers = msgspec.msgpack.Decoder(type(self._ledger))
        self._replication = Replication(me=me, min_insync=info.min_insync)
        self._waiting: dict[WorkerId, Request] = {}
        self._attending: dict[WorkerId, Request] = {}
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

    @property
    def staleness(self) -> int:
        """How many rounds the slowest worker is behind the fastest."""
        clocks = self._ledger.clocks.values() if isinstance(self._ledger, ClockLedger) else ()
        return max(clocks, default=0) - min(clocks, default=0)

    @property
    def awaited(self) -> tuple[WorkerId, ...]:
        """The few workers that the others wait for, if there are such."""
        awaited = self._ledger.awaited
        return tuple(awaited) if len(awaited) <= FEW else ()

    def command(self, request: Request, body: bytes) -> None:
        """Carry out a worker's command; its answer may come with a later one."""
        word = _decoded(body)
        worker = request.header.worker
        if isinstance(word, Observe) or word.worker != worker:
            raise WireError("a worker may speak for itself alone", field="worker")
        if isinstance(word, Question):
            self._asked(request, word)
        else:
            self.carry_out(request, word, body)

    def carry_out(self, request: Request, command: Command, body: bytes) -> None:
        """The same for a command of the request's own worker; ``body`` is the command encoded."""
        _replace(self._waiting, request.header.worker, request)
        self._execute(command, body)

    def _asked(self, request: Request, question: Question) -> None:
        worker, ledger = question.worker, self._ledger
        if worker not in ledger.members:
            self._tell(request, Refused("this worker is not a member of the job any more"))
        elif isinstance(question, Inspect):
            self._tell(request, Inspected(ledger.cut()))
        elif isinstance(question, Lookup):
            self._tell(request, ledger.found(question.key))
        elif question.generation != ledger.generation:
            self._tell(request, Regenerated(ledger.turn(worker)))
        else:
            _replace(self._attending, worker, request)

    def _tell_attending(self, generation: int) -> None:
        """The set of workers may have changed: those who wait to hear of it do."""
        if self._ledger.generation == generation:
            return
        attending, self._attending = self._attending, {}
        for worker, request in attending.items():
            self._asked(request, Attend(worker, Generation(generation)))

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
        generation, round_ = self._ledger.generation, self._ledger.round
        version = self._replication.record(_digest(body))
        answers = self._ledger.apply(command)
        if not isinstance(command, Initialized):  # which may go on from a checkpoint's round
            self.counts.rounds += self._ledger.round - round_
        self._streams.publish(self, OpMeta(version=version, command=body), None)
        for worker, answer in answers:
            request = self._waiting.pop(worker, None)
            if request is not None:
                self._tell(request, answer)
        self._tell_attending(generation)

    def _tell(self, request: Request, answer: Answer) -> None:
        self._answers[request] = msgspec.msgpack.encode(answer)
        self.perform(self._replication.answer_when_durable(request))

    def answer_durable(self, request: Request) -> None:
        request.answer(Status.OK, self._answers.pop(request))

    def adopt(self, entry: Entry) -> None:
        super().adopt(entry)
        if self._replication.role is not Role.PRIMARY:
            self.refuse_waiting()

    def refuse_waiting(self) -> None:
        for request in (*self._waiting.values(), *self._attending.values()):
            request.answer(Status.FENCED)
        self._waiting.clear()
        self._attending.clear()
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
            self._ledger = self._ledgers.decode(meta.ledger).ruled_by(self._policy)
        except UNDECODABLE as error:
            raise WireError(f"not a ledger: {error}", field="ledger") from error
        self._replication.install(meta.version, meta.history)

    def follow(self, op: OpMeta, payload: memoryview | None, *, lent: bool = False) -> None:
        self._ledger.apply(_command(op.command))
        self._replication.follow(_digest(op.command))

    def free(self) -> None:
        """The table lets go of a freed ledger, and with it of its memory."""


def _replace(waiting: dict[WorkerId, Request], worker: WorkerId, request: Request) -> None:
    """Whichever of the two is a late copy, of which nobody waits for the answer, is not known.

    The earlier one is asked again by whoever still wants to know.
    """
    earlier = waiting.pop(worker, None)
    if earlier is not None:
        earlier.answer(Status.FENCED)
    waiting[worker] = request


def _decoded(body: bytes) -> Command | Question:
    try:
        word: Command | Question = _words.decode(body)
    except UNDECODABLE as error:
        raise WireError(f"not a ledger command: {error}", field="meta") from error
    return word


def _command(body: bytes) -> Command:
    word = _decoded(body)
    if isinstance(word, Question):
        raise WireError("a question is no op", field="command")
    return word


def _digest(body: bytes) -> int:
    """A number for the command's bytes, for the replica's running hash."""
    digest = 0
    for offset in range(0, len(body), 8):
        digest = mix(digest ^ int.from_bytes(body[offset : offset + 8], "little"))
    return digest
