"""The ledger: a job's small replicated state machine of worker clocks, rounds and data leases.

Commands go in, answers to workers come out; the same commands in the same order give the same state
on every replica. All commands may be repeated: a worker that got no answer asks again.
"""

from __future__ import annotations

import msgspec

from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.ranges import DataSpec, Range, Supply, divide, take
from elasticps.core.replica import Commit


class Join(msgspec.Struct, frozen=True, tag=True):
    worker: WorkerId


class Initialized(msgspec.Struct, frozen=True, tag=True):
    """The initializer has given every block its first value."""

    worker: WorkerId


class Register(msgspec.Struct, frozen=True, tag=True):
    """Say what data the job reads; the first worker's word counts, the others' must agree."""

    worker: WorkerId
    data: DataSpec


class Vote(msgspec.Struct, frozen=True, tag=True):
    """All pushes of this worker for the round are staged (or it contributes none)."""

    worker: WorkerId
    round: Round
    generation: Generation
    contributes: bool = True
    leaving: bool = False


class Leave(msgspec.Struct, frozen=True, tag=True):
    worker: WorkerId


class Observe(msgspec.Struct, frozen=True, tag=True):
    """etcd's list of living workers as of ``revision``: whoever is older and not on it is dead."""

    alive: tuple[WorkerId, ...]
    revision: int


Command = Join | Initialized | Register | Vote | Leave | Observe


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do next: its place among the workers and its samples of the round."""

    round: Round
    generation: Generation
    rank: int
    world: int
    samples: tuple[Range, ...] = ()
    exhausted: bool = False


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """The worker counts from ``turn.round`` on. The initializer first gives the blocks values."""

    turn: Turn
    commit: Commit | None
    initialize: bool = False


class Committed(msgspec.Struct, frozen=True, tag=True):
    """The round is whole. ``turn`` is None for a worker that leaves with it."""

    commit: Commit
    turn: Turn | None


class Regenerated(msgspec.Struct, frozen=True, tag=True):
    """The set of workers changed before the round was whole: push again, vote again."""

    turn: Turn


class Registered(msgspec.Struct, frozen=True, tag=True):
    turn: Turn


class Left(msgspec.Struct, frozen=True, tag=True):
    pass


class Refused(msgspec.Struct, frozen=True, tag=True):
    reason: str


Answer = Admitted | Committed | Regenerated | Registered | Left | Refused
Answers = list[tuple[WorkerId, Answer]]


class Ledger(msgspec.Struct, kw_only=True):
    """The state; ``apply`` is its only mutator. Members are in rank order."""

    start_workers: int
    started: bool = False
    initialized: bool = False
    round: Round = Round(0)
    generation: Generation = Generation(0)
    members: list[WorkerId] = []
    joining: list[WorkerId] = []
    leaving: list[WorkerId] = []
    votes: dict[WorkerId, bool] = {}
    last: Commit | None = None
    alive: list[WorkerId] = []
    observed: int = 0
    departed: list[WorkerId] = []
    farewells: dict[WorkerId, Commit] = {}
    data: DataSpec | None = None
    supply: Supply = Supply()
    leases: dict[WorkerId, tuple[Range, ...]] = {}

    def apply(self, command: Command) -> Answers:
        match command:
            case Join():
                return self._join(command.worker)
            case Initialized():
                return self._initialized(command.worker)
            case Register():
                return self._register(command)
            case Vote():
                return self._vote(command)
            case Leave():
                return [*self._remove([command.worker]), (command.worker, Left())]
            case Observe():
                return self._observe(command)

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
        return self._start()

    def _is_gone(self, worker: WorkerId) -> bool:
        return worker in self.departed or not self._may_ask(worker)

    def _may_ask(self, worker: WorkerId) -> bool:
        """False for a worker that etcd's list shows to be dead."""
        return worker > self.observed or worker in self.alive

    def _start(self) -> Answers:
        """Admit those who wait, where no round is under way that they would have to wait for."""
        if self.members or not self.joining:
            return []
        if not self.started and len(self.joining) < self.start_workers:
            return []
        self.started = True
        self._seat(self.joining)
        self._lease_round()
        return self._admissions(self.members)

    def _seat(self, joiners: list[WorkerId]) -> None:
        self.members = [*self.members, *joiners]
        self.joining = []
        self.generation = Generation(self.generation + 1)

    def _admissions(self, workers: list[WorkerId]) -> Answers:
        invited = workers if self.initialized else [w for w in workers if w == self.members[0]]
        return [(worker, self._admitted(worker)) for worker in invited]

    def _admitted(self, worker: WorkerId) -> Admitted:
        return Admitted(self._turn(worker), self.last, initialize=not self.initialized)

    def _initialized(self, worker: WorkerId) -> Answers:
        if worker not in self.members:
            return [(worker, Refused("only a member may initialize the blocks"))]
        if self.initialized:
            return [(worker, self._admitted(worker))]
        self.initialized = True
        return self._admissions(self.members)

    def _observe(self, command: Observe) -> Answers:
        if command.revision <= self.observed:
            return []
        self.alive, self.observed = sorted(command.alive), command.revision
        known = [*self.members, *self.joining]
        self.departed = [worker for worker in self.departed if self._may_ask(worker)]
        self.farewells = {
            worker: commit for worker, commit in self.farewells.items() if self._may_ask(worker)
        }
        return self._remove([worker for worker in known if self._is_gone(worker)])

    def _remove(self, workers: list[WorkerId]) -> Answers:
        """Take workers out in the middle of a round: who remains pushes and votes again."""
        first = self.members[:1]
        self.joining = [worker for worker in self.joining if worker not in workers]
        self.departed += [worker for worker in workers if not self._is_gone(worker)]
        gone = [worker for worker in self.members if worker in workers]
        if not gone:
            return []
        self.members = [worker for worker in self.members if worker not in gone]
        self.leaving = [worker for worker in self.leaving if worker not in gone]
        for worker in gone:
            self.supply = self.supply.returned(self.leases.pop(worker, ()))
        self.generation = Generation(self.generation + 1)
        voted = [worker for worker in self.members if worker in self.votes]
        self.votes = {}
        if not self.members:
            return self._start()
        if not self.initialized:
            return self._admissions(self.members) if self.members[:1] != first else []
        return [(worker, Regenerated(self._turn(worker))) for worker in voted]

    # -- rounds ---------------------------------------------------------------------------------

    def _vote(self, vote: Vote) -> Answers:
        worker, last = vote.worker, self.last
        farewell = self.farewells.get(worker)
        if farewell is not None and vote.round == farewell.round:
            return [(worker, Committed(farewell, None))]
        if worker not in self.members:
            return [(worker, Refused("this worker is not a member of the job any more"))]
        if last is not None and vote.round == last.round:
            return [(worker, Committed(last, self._turn(worker)))]
        if vote.round != self.round + 1:
            return [(worker, Refused(f"round {vote.round} is not the next after {self.round}"))]
        if vote.generation != self.generation:
            return [(worker, Regenerated(self._turn(worker)))]
        self.votes[worker] = vote.contributes
        if vote.leaving and worker not in self.leaving:
            self.leaving.append(worker)
        if all(member in self.votes for member in self.members):
            return self._commit()
        return []

    def _commit(self) -> Answers:
        voters = self.members
        contributors = tuple(worker for worker in voters if self.votes[worker])
        self.round = Round(self.round + 1)
        self.last = Commit(self.round, self.generation, contributors)
        joiners = self.joining
        self.departed += self.leaving
        self.farewells.update((worker, self.last) for worker in self.leaving)
        self.members = [worker for worker in voters if worker not in self.leaving]
        if joiners or self.leaving:
            self._seat(joiners)
        self.leaving, self.votes = [], {}
        self._lease_round()
        answers: Answers = [
            (worker, Committed(self.last, self._turn(worker) if worker in self.members else None))
            for worker in voters
        ]
        return answers + self._admissions(joiners)

    def _turn(self, worker: WorkerId) -> Turn:
        return Turn(
            round=Round(self.round + 1),
            generation=self.generation,
            rank=self.members.index(worker),
            world=len(self.members),
            samples=self.leases.get(worker, ()),
            exhausted=self._exhausted,
        )

    @property
    def _exhausted(self) -> bool:
        """None lent and none left: where a worker died, none may be lent while some are left."""
        lent = any(self.leases.values())
        return self.data is not None and not lent and self.supply.spent(self.data)

    # -- data -----------------------------------------------------------------------------------

    def _register(self, command: Register) -> Answers:
        worker = command.worker
        if worker not in self.members:
            return [(worker, Refused("only a member may register data"))]
        if min(command.data.size, command.data.batch_size, command.data.epochs) < 1:
            return [(worker, Refused(f"there is nothing to read in {command.data}"))]
        if self.data is None:
            if self.round or self.votes:
                return [(worker, Refused("run.data must come before the first optimizer step"))]
            self.data = command.data
            self._lease_round()
        elif self.data != command.data:
            return [(worker, Refused(f"the job reads {self.data}, this worker {command.data}"))]
        return [(worker, Registered(self._turn(worker)))]

    def _lease_round(self) -> None:
        """Lend the next global batch to the members, in rank order, in near-equal slices."""
        if self.data is None or not self.members:
            self.leases = {}
            return
        batch, self.supply = take(self.data, self.supply)
        slices = divide(batch, len(self.members))
        self.leases = dict(zip(self.members, slices, strict=True))
