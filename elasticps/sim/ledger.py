"""A simulated ledger: ``server/ledger_host.py`` without bytes and sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from elasticps.core.audit import mix
from elasticps.core.commands import (
    Answer,
    Attend,
    Command,
    Inspect,
    Inspected,
    Lookup,
    Observe,
    Question,
    Refused,
    Regenerated,
)
from elasticps.core.ids import LEDGER, Generation, WorkerId
from elasticps.core.plan import Entry
from elasticps.core.replication import Replication, Role
from elasticps.core.roster import Roster
from elasticps.sim.hosting import Hosted
from elasticps.sim.messages import Fingerprint, LedgerSnapshot, Op, Request, Status

if TYPE_CHECKING:
    from elasticps.sim.server import Server

_encoder = msgspec.msgpack.Encoder()


class LedgerHost(Hosted):
    """One replica of the job's ledger."""

    def __init__(self, server: Server) -> None:
        super().__init__(server, LEDGER)
        self.ledger: Roster = server.job.new_ledger()
        self._replication = Replication(me=server.id, min_insync=server.job.min_insync)
        self._waiting: dict[WorkerId, Request] = {}
        self._attending: dict[WorkerId, Request] = {}
        self._answers: dict[Request, Answer] = {}

    @property
    def replication(self) -> Replication:
        return self._replication

    def fingerprint(self) -> Fingerprint:
        return (_encoder.encode(self.ledger),)

    def ask(self, request: Request) -> None:
        word = request.message.body
        if isinstance(word, Question):
            self._asked(request, word)
            return
        _replace(self._waiting, word.worker, request)
        self._execute(word)

    def _asked(self, request: Request, question: Question) -> None:
        worker, ledger = question.worker, self.ledger
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
        if self.ledger.generation == generation:
            return
        attending, self._attending = self._attending, {}
        for worker, request in attending.items():
            self._asked(request, Attend(worker, Generation(generation)))

    def observe(self, workers: tuple[WorkerId, ...], revision: int) -> None:
        if self._replication.role is not Role.PRIMARY or revision <= self.ledger.observed:
            return
        self._execute(Observe(workers, revision))
        known = (*self.ledger.members, *self.ledger.joining)
        for worker in [name for name in self._waiting if name not in known]:
            self._waiting.pop(worker).answer(Status.FENCED)

    def _execute(self, command: Command) -> None:
        generation = self.ledger.generation
        version = self._replication.record(_digest(command))
        answers = self.ledger.apply(command)
        self.server.check.commanded(self, command, answers)
        self.publish(Op(version, self.fingerprint(), command=command))
        for worker, answer in answers:
            request = self._waiting.pop(worker, None)
            if request is not None:
                self._tell(request, answer)
        self._tell_attending(generation)

    def _tell(self, request: Request, answer: Answer) -> None:
        self._answers[request] = answer
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

    def snapshot(self) -> LedgerSnapshot:
        encoded = self.fingerprint()
        return LedgerSnapshot(
            self._replication.version, self._replication.history, encoded, encoded[0]
        )

    def install(self, snapshot: LedgerSnapshot) -> None:
        self.ledger = msgspec.msgpack.decode(snapshot.ledger, type=type(self.ledger))
        self._replication.install(snapshot.version, snapshot.history)

    def follow(self, op: Op) -> bool:
        assert op.command is not None
        self.ledger.apply(op.command)
        self._replication.follow(_digest(op.command))
        return True


def _replace(waiting: dict[WorkerId, Request], worker: WorkerId, request: Request) -> None:
    """One of the two may be a late copy, of which nobody waits for the answer: it is unknown which.

    The earlier one is asked again by whoever still wants to know.
    """
    earlier = waiting.pop(worker, None)
    if earlier is not None:
        earlier.answer(Status.FENCED)
    waiting[worker] = request


def _digest(command: Command) -> int:
    return mix(crc32(_encoder.encode(command)))
