"""What every ledger keeps, whatever its consistency: who takes part, and who reads what."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection

from msgspec import field

from elasticps.core.bulletin import Notes, objection, under, without, written
from elasticps.core.commands import (
    Admitted,
    Answers,
    Command,
    Cut,
    Floor,
    Found,
    Held,
    Hold,
    Initialized,
    Join,
    Leave,
    Left,
    Observe,
    Publish,
    Published,
    Ready,
    Reduce,
    Refused,
    Regenerated,
    Register,
    Registered,
    Regroup,
    Through,
    Turn,
    Vote,
)
from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.ranges import Range
from elasticps.core.reading import Reading
from elasticps.core.reduction import MAX_NUMBERS, Reduction
from elasticps.core.replica import Commit


class Roster(Reading, kw_only=True, dict=True):
    """The state; ``apply`` is its only mutator. Members are in rank order.

    A ledger adds what a vote does, and what a change of the members means for those who wait.
    ``notes`` are the bulletin. The members of ``short`` cannot go on without another.
    ``through``: the main worker has left, all data read; nobody is to be the main one after it.
    """

    start_workers: int
    started: bool = False
    initialized: bool = False
    joining: list[WorkerId] = field(default_factory=list)
    short: Generation = Generation(-1)
    last: Commit | None = None
    alive: list[WorkerId] = field(default_factory=list)
    observed: int = 0
    departed: list[WorkerId] = field(default_factory=list)
    farewells: dict[WorkerId, Commit] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)
    reduction: Reduction = Reduction()
    through: bool = False

    def apply(self, command: Command) -> Answers:
        if self.failed and not isinstance(command, Leave | Observe):
            return [(command.worker, Refused(self.failed))]
        failed = self.failed
        answers = self._carry_out(command)
        self.reduction, reduced = self.reduction.settled(self.members, self._past)
        answers += reduced
        if self.failed == failed:
            return answers
        told = dict.fromkeys([*(worker for worker, _ in answers), *self.members, *self.joining])
        return [(worker, Refused(self.failed)) for worker in told]

    def _carry_out(self, command: Command) -> Answers:
        match command:
            case Join():
                return self._join(command.worker)
            case Initialized():
                return self._initialized(command)
            case Register():
                return self._register(command)
            case Ready():
                return self._ready(command)
            case Vote():
                return self._vote(command)
            case Leave():
                return self._leave(command)
            case Observe():
                return self._observe(command)
            case Publish() | Regroup() | Hold() | Reduce():
                return self._say(command)

    def _say(self, command: Publish | Regroup | Hold | Reduce) -> Answers:
        match command:
            case Publish():
                return self._publish(command)
            case Regroup():
                return self._regroup(command)
            case Hold():
                return self._hold(command)
            case Reduce():
                return self._reduce(command)

    @property
    @abstractmethod
    def awaited(self) -> list[WorkerId]:
        """The members that others wait for; nobody where no other one is ready yet."""

    def turn(self, worker: WorkerId) -> Turn:
        """A member's part in what comes next."""
        return Turn(
            round=self._next_round(worker),
            generation=self.generation,
            rank=self.members.index(worker),
            world=len(self.members),
            pushers=len(self._able),
            contributes=worker in self._able,
            samples=self._lent(worker),
            exhausted=self._exhausted,
            last=self._is_all_lent,
            ahead=self._ahead_of(worker),
            through=self.through,
        )

    def cut(self) -> Cut:
        """Where the job stands: what is lent for the round under way counts as not read."""
        return Cut(self.round, self.data, self.drawn_from)

    def found(self, key: str) -> Found:
        """The members, and what each has written under ``key``."""
        return Found(self.generation, tuple(self.members), under(self.notes, key, self.members))

    # -- what each kind of ledger adds ----------------------------------------------------------

    @abstractmethod
    def _ready(self, ready: Ready) -> Answers: ...

    @abstractmethod
    def _vote(self, vote: Vote) -> Answers: ...

    @abstractmethod
    def _may_seat(self) -> bool:
        """May workers be seated now, or only when the round under way is over?"""

    @abstractmethod
    def _seated(self, joiners: list[WorkerId]) -> None:
        """``joiners`` have just become members: give them what they need."""

    @abstractmethod
    def _went(self, gone: list[WorkerId]) -> Answers:
        """Members that stay are told what ``gone``, no members any more, mean to them."""

    @property
    @abstractmethod
    def _past(self) -> Collection[WorkerId]:
        """The members that have nothing more to give to the round that is whole."""

    @abstractmethod
    def _next_round(self, worker: WorkerId) -> Round: ...

    def _ahead_of(self, worker: WorkerId) -> tuple[tuple[Range, ...], ...]:
        """What a member is lent in the rounds after, if all goes on as it is."""
        return ()

    @property
    def _able(self) -> list[WorkerId]:
        """The members that have something to contribute to what comes next."""
        if self.data is None:
            return self.members
        return [member for member in self.members if self._lent(member)]

    @property
    def _floor(self) -> Floor:
        return {}

    # -- membership -----------------------------------------------------------------------------

    def _join(self, worker: WorkerId) -> Answers:
        if self._is_gone(worker):
            return [(worker, Refused("this worker has left the job or was declared dead"))]
        if worker in self.members:
            if self.initialized or worker == self.members[0]:
                return [(worker, self._admitted(worker))]
            return []
        if worker not in self.joining:
            self.joining.append(worker)
        return self._start() or self._help()

    def _is_gone(self, worker: WorkerId) -> bool:
        return worker in self.departed or not self._may_ask(worker)

    def _may_ask(self, worker: WorkerId) -> bool:
        """False for a worker that etcd's list shows to be dead."""
        return worker > self.observed or worker in self.alive

    def _start(self) -> Answers:
        """Admit those who wait, where they need not wait any longer."""
        if not self.joining or not self._may_seat():
            return []
        if self.through and not self.members:
            late, self.joining = self.joining, []
            return [(worker, Through()) for worker in late]
        if not self.started and len(self.joining) < self.start_workers:
            return []
        self.started = True
        joiners = self._seat()
        self._lend()
        return self._admissions(joiners)

    def _help(self) -> Answers:
        """Seat who waits in the middle of a round, where it cannot go on without, and begin anew.

        What is lent for the round stays lent: the new ones have no part of it.
        """
        if not self.joining or self.short != self.generation:
            return []
        joiners = self._seat()
        if self.data is not None:
            self.leases.update(dict.fromkeys(joiners, ()))
        return [*self._went([]), *self._admissions(joiners)]

    def _seat(self) -> list[WorkerId]:
        """Those who wait become members; returns who that was."""
        joiners, self.joining = self.joining, []
        self.members = [*self.members, *joiners]
        self.generation = Generation(self.generation + 1)
        self._seated(joiners)
        return joiners

    def _admissions(self, workers: list[WorkerId]) -> Answers:
        invited = workers if self.initialized else [w for w in workers if w == self.members[0]]
        return [(worker, self._admitted(worker)) for worker in invited]

    def _admitted(self, worker: WorkerId) -> Admitted:
        return Admitted(
            self.turn(worker),
            self.last,
            initialize=not self.initialized,
            floor=self._floor,
            begun=self.begun,
        )

    def _initialized(self, command: Initialized) -> Answers:
        worker = command.worker
        if worker not in self.members:
            return [(worker, Refused("only a member may initialize the blocks"))]
        if self.initialized:
            return [(worker, self._admitted(worker))]
        if command.cut is not None and not command.cut.is_sound:
            return [(worker, Refused(f"nowhere to go on from: {command.cut}"))]
        self.initialized = True
        if command.cut is not None:
            self._resume(command.cut)
        return self._admissions(self.members)

    def _resume(self, cut: Cut) -> None:
        self.round = self.begun = cut.round
        self.last = Commit(cut.round, self.generation, ())
        self.supply = self.drawn_from = cut.supply
        self.resumed = cut.data
        self._seated(self.members)

    def _observe(self, command: Observe) -> Answers:
        if command.revision <= self.observed:
            return []
        self.alive, self.observed = sorted(command.alive), command.revision
        known = [*self.members, *self.joining]
        self.departed = [worker for worker in self.departed if self._may_ask(worker)]
        self.farewells = {
            worker: commit for worker, commit in self.farewells.items() if self._may_ask(worker)
        }
        self.notes = without(self.notes, [name for name in self.notes if self._is_gone(name)])
        return self._remove([worker for worker in known if self._is_gone(worker)])

    def _leave(self, leave: Leave) -> Answers:
        is_member = leave.worker in self.members
        self.through = self.through or (leave.through and is_member and self._exhausted)
        return [*self._remove([leave.worker]), (leave.worker, Left())]

    def _remove(self, workers: list[WorkerId]) -> Answers:
        """Take workers out in the middle of whatever is under way; their samples come back."""
        first = self.members[:1]
        self.joining = [worker for worker in self.joining if worker not in workers]
        self.departed += [worker for worker in workers if not self._is_gone(worker)]
        self.readers = [worker for worker in self.readers if worker not in workers]
        self._forget_readers(workers)
        self.reduction = self.reduction.without(workers)
        self.notes = without(self.notes, workers)
        gone = [worker for worker in self.members if worker in workers]
        if not gone:
            return []
        self.members = [worker for worker in self.members if worker not in gone]
        for worker in gone:
            self.supply = self.supply.returned(self._taken_back(worker))
        self.generation = Generation(self.generation + 1)
        answers = self._went(gone)
        if not self.members:
            return answers + self._start()
        if not self.initialized:
            return self._admissions(self.members) if self.members[:1] != first else []
        return answers

    # -- what members do together -----------------------------------------------------------------

    def _publish(self, command: Publish) -> Answers:
        worker, key, note = command.worker, command.key, command.note
        reason = "this worker has left the job or was declared dead"
        if not self._is_gone(worker):
            reason = objection(self.notes, worker, key, note)
        if reason:
            return [(worker, Refused(reason))]
        self.notes = written(self.notes, worker, key, note)
        return [(worker, Published())]

    def _regroup(self, command: Regroup) -> Answers:
        """Whoever says so first opens a generation of the same members; the rest hear of it."""
        worker = command.worker
        if worker not in self.members:
            return [(worker, Refused("this worker is not a member of the job any more"))]
        if command.generation != self.generation:
            return [(worker, Regenerated(self.turn(worker)))]
        if command.seats:
            self.short = self.generation
            told = self._help()
        else:
            self.generation = Generation(self.generation + 1)
            told = self._went([])
        others = [answer for answer in told if answer[0] != worker]
        return [*others, (worker, Regenerated(self.turn(worker)))]

    def _reduce(self, command: Reduce) -> Answers:
        worker, numbers = command.worker, command.numbers
        if worker not in self.members:
            return [(worker, Refused("this worker is not a member of the job any more"))]
        if len(numbers) > MAX_NUMBERS:
            return [(worker, Refused(f"{len(numbers)} numbers, of at most {MAX_NUMBERS}"))]
        known = self.reduction.known(command)
        if known is not None:
            return [(worker, known)]
        if self.reduction.is_over(command):
            return [(worker, Refused("these numbers have been given already"))]
        self.reduction = self.reduction.with_one(command)
        return []

    # -- data -----------------------------------------------------------------------------------

    def _register(self, command: Register) -> Answers:
        worker = command.worker
        if worker not in self.members:
            return [(worker, Refused("only a member may register data"))]
        reason = self._enrol(command)
        if reason:
            return [(worker, Refused(reason))]
        return [(worker, Registered(self.turn(worker), self.last))]

    def _hold(self, command: Hold) -> Answers:
        worker = command.worker
        if worker not in self.members:
            return [(worker, Refused("only a member may say what lies on its node"))]
        reason = self._note_local(command)
        return [(worker, Refused(reason) if reason else Held())]
