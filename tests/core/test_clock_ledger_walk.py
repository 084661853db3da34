"""The clock ledger's promises in any order of steps, joins, leaves, deaths and failovers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from random import Random

import msgspec
import pytest

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import (
    Admitted,
    Answer,
    Command,
    Committed,
    Initialized,
    Join,
    Leave,
    Left,
    Observe,
    Register,
    Registered,
    Through,
    Turn,
    Vote,
)
from elasticps.core.ids import Seq, WorkerId
from elasticps.core.lending import DYNAMIC, LEASED, LOCAL, STATIC
from elasticps.core.ranges import DataSpec
from tests.support.ledger_answers import positions
from tests.support.ledger_world import encoded


@dataclass(slots=True)
class Worker:
    """One life of a worker; ``asked`` is the question it waits on."""

    id: WorkerId
    turn: Turn | None = None
    asked: Command | None = None
    clock: int = 0
    seq: int = 0
    initializes: bool = False
    registered: bool = False
    over: bool = False


@dataclass(slots=True)
class Walk:
    """Steps, lost answers, late copies, joins, leaves, deaths and failovers, from a seed."""

    seed: int
    data_policy: str
    random: Random = field(init=False)
    ledger: ClockLedger = field(init=False)
    follower: ClockLedger = field(init=False)
    data: DataSpec | None = field(init=False)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    said: list[Command] = field(default_factory=list)
    read: Counter[int] = field(default_factory=Counter)
    votes: dict[WorkerId, Seq] = field(default_factory=dict)
    revision: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        start = self.random.randint(1, 3)
        staleness = self.random.choice([None, 0, 1, 3])
        self.ledger, self.follower = (
            ClockLedger(start_workers=start, staleness=staleness, data_policy=self.data_policy)
            for _ in range(2)
        )
        size, batch = self.random.randint(1, 14), self.random.randint(1, 6)
        data = DataSpec(size, batch, self.random.randint(1, 2), 0)
        self.data = self.random.choice([None, data])
        for _ in range(start):
            self.join()

    def run(self, steps: int) -> None:
        acts = [self.go_on, self.ask_again, self.join, self.leave, self.die, self.repeat, self.swap]
        for act in self.random.choices(acts, weights=[40, 6, 2, 1, 2, 4, 1], k=steps):
            act()
        self._finish()

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if not worker.over]

    # -- what may happen ------------------------------------------------------------------------

    def join(self) -> None:
        if len(self.living) < 5:
            self.revision += 1
            worker = self.workers[WorkerId(self.revision)] = Worker(WorkerId(self.revision))
            self.ask(worker)

    def go_on(self) -> None:
        idle = [worker for worker in self.living if worker.asked is None]
        if idle:
            self.ask(self.random.choice(idle), heard=self.random.random() < 0.9)

    def ask_again(self) -> None:
        waiting = [worker for worker in self.living if worker.asked is not None]
        if waiting:
            self.ask(self.random.choice(waiting))

    def leave(self) -> None:
        idle = [worker for worker in self.living if worker.asked is None and worker.turn]
        if idle:
            worker = self.random.choice(idle)
            worker.asked = Leave(worker.id)
            self.ask(worker)

    def die(self) -> None:
        if self.living:
            self.random.choice(self.living).over = True
            self.observe()

    def observe(self) -> None:
        self.revision += 1
        self.apply(Observe(tuple(worker.id for worker in self.living), self.revision))

    def repeat(self) -> None:
        if self.said:
            self.check_repeat(self.random.choice(self.said))

    def swap(self) -> None:
        """The follower takes over: whoever waits asks again."""
        self.ledger, self.follower = self.follower, self.ledger
        for worker in self.living:
            if worker.asked is not None and self.random.random() < 0.5:
                self.ask(worker)

    # -- questions and answers ------------------------------------------------------------------

    def next_question(self, worker: Worker) -> Command:
        turn = worker.turn
        if turn is None:
            return Join(worker.id)
        if worker.initializes:
            return Initialized(worker.id)
        if self.data is not None and not worker.registered:
            return Register(worker.id, self.data, ahead=worker.id % 3)
        if turn.exhausted:
            return Leave(worker.id, through=turn.rank == 0)
        contributes = self.data is None or bool(turn.samples)
        worker.seq += contributes
        seq, speed = Seq(worker.seq), 1.0 + worker.id % 3
        return Vote(worker.id, turn.round, turn.generation, contributes, seq=seq, speed=speed)

    def ask(self, worker: Worker, *, heard: bool = True) -> None:
        if worker.asked is None:
            worker.asked = self.next_question(worker)
        self.apply(worker.asked, deaf=None if heard else worker)

    def apply(self, command: Command, deaf: Worker | None = None) -> None:
        before = dict(self.ledger.clocks)
        lent = dict(self.ledger.leases)
        if isinstance(command, Vote) and before.get(command.worker) == command.round - 1:
            self.read.update(positions(lent.get(command.worker, ()) if command.contributes else ()))
            if command.contributes:
                self.votes[command.worker] = command.seq
        answers = self.ledger.apply(command)
        assert self.follower.apply(command) == answers
        assert encoded(self.ledger) == encoded(self.follower)
        self.said.append(command)
        self.check_repeat(command)
        self.check_state()
        for name, answer in answers:
            worker = self.workers[name]
            if not worker.over and worker is not deaf and worker.asked is not None:
                self.hear(worker, answer)

    def hear(self, worker: Worker, answer: Answer) -> None:
        worker.asked = None
        match answer:
            case Admitted():
                worker.turn, worker.initializes = answer.turn, answer.initialize
            case Registered():
                worker.turn, worker.registered = answer.turn, True
            case Committed():
                assert answer.commit.round >= worker.clock
                worker.clock, worker.turn = answer.commit.round, answer.turn
                self.check_goes_on(worker, answer)
            case Left() | Through():
                worker.over = True
            case _:
                raise AssertionError(answer)

    # -- promises -------------------------------------------------------------------------------

    def check_goes_on(self, worker: Worker, answer: Committed) -> None:
        bound, clocks = self.ledger.staleness, self.ledger.clocks
        if bound is not None and worker.id in clocks:
            assert clocks[worker.id] - min(clocks.values()) <= bound
        for name, seq in answer.floor.items():
            assert self.votes[name] == seq
        assert [name for name in clocks if name in self.votes] == [
            name for name in clocks if name in answer.floor
        ]

    def check_repeat(self, command: Command) -> None:
        """A command that was carried out once changes nothing when it comes again."""
        now = encoded(self.ledger)
        again = msgspec.msgpack.decode(now, type=ClockLedger)
        again.apply(command)
        assert encoded(again) == now, command

    def check_state(self) -> None:
        ledger = self.ledger
        assert list(ledger.clocks) == ledger.members or set(ledger.clocks) == set(ledger.members)
        assert set(ledger.waiting) <= set(ledger.members)
        assert set(ledger.leases) <= set(ledger.members)
        assert ledger.round <= min(ledger.clocks.values(), default=ledger.round)
        self.check_samples()

    def check_samples(self) -> None:
        """Each sample lent so far was read, is lent now, or was given back: one of these."""
        if self.data is not None and self.ledger.data is not None:
            ledger = self.ledger
            assert set(ledger.reserved) <= set(ledger.members)
            ahead = [parts for steps in ledger.reserved.values() for parts in steps]
            held = [*ledger.leases.values(), *ahead]
            kept = Counter(positions(part for each in held for part in each))
            back = Counter(positions(ledger.supply.given_back))
            assert self.read + kept + back == Counter(range(ledger.supply.position))

    # -- the end --------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Without faults all get to the end of the data, or three steps further."""
        self.observe()
        goal = max(self.ledger.clocks.values(), default=0) + 3
        for _ in range(2000):
            missing = (1 if self.ledger.started else self.ledger.start_workers) - len(self.living)
            if self._done(goal):
                return
            for _ in range(missing):
                self.join()
            for worker in self.living:
                if worker.asked is None and worker.clock >= goal and self.data is None:
                    worker.asked = Leave(worker.id)
                self.ask(worker)
        raise AssertionError("the workers do not get on")

    def _done(self, goal: int) -> bool:
        if self.living:
            return False
        if self.data is None:
            return self.ledger.round >= goal - 1
        return self.ledger.data is not None and self.read == Counter(
            range(self.data.size * self.data.epochs)
        )


@pytest.mark.parametrize(
    ("block", "data_policy"),
    [*product(range(4), [DYNAMIC, STATIC]), (0, LEASED), (1, LOCAL)],
)
def test_clocks_keep_their_bound_and_samples_are_read_whatever_happens_in_whatever_order(
    block: int, data_policy: str
) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        try:
            Walk(seed, data_policy).run(steps=80)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
