"""The ledger of workers that do not move in step: the bound, the floor, samples at least once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from random import Random

import msgspec
import pytest

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import (
    Admitted,
    Answer,
    Answers,
    Command,
    Committed,
    Initialized,
    Join,
    Leave,
    Left,
    Observe,
    Ready,
    Refused,
    Register,
    Registered,
    Through,
    Turn,
    Vote,
)
from elasticps.core.ids import Generation, Round, Seq, WorkerId
from elasticps.core.lending import DYNAMIC, LEASED, LOCAL, STATIC
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.replica import Commit

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)
DATA = DataSpec(size=8, batch_size=2, epochs=1, seed=0)


def vote(worker: WorkerId, number: int, seq: int = 0, **flags: bool) -> Vote:
    return Vote(worker, Round(number), Generation(1), seq=Seq(seq or number), **flags)


def ledger_of(
    *workers: WorkerId,
    staleness: int | None = 0,
    data: DataSpec | None = None,
    ahead: int = 0,
) -> ClockLedger:
    ledger = ClockLedger(start_workers=len(workers), staleness=staleness)
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    if data is not None:
        for worker in workers:
            ledger.apply(Register(worker, data, ahead=ahead))
    return ledger


def only(answers: Answers, worker: WorkerId) -> Answer:
    (answer,) = [answer for name, answer in answers if name == worker]
    return answer


def asked(answers: Answers) -> list[WorkerId]:
    return [worker for worker, _ in answers]


def encoded(ledger: ClockLedger) -> bytes:
    return msgspec.msgpack.encode(ledger)


# -- the bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("staleness", "steps"), [(0, 0), (1, 1), (3, 3), (None, 9)])
def test_a_worker_takes_as_many_steps_ahead_as_the_bound_allows(
    staleness: int | None, steps: int
) -> None:
    ledger = ledger_of(ONE, TWO, staleness=staleness)
    for number in range(1, steps + 1):
        assert asked(ledger.apply(vote(ONE, number))) == [ONE]
    assert asked(ledger.apply(vote(ONE, steps + 1))) == ([ONE] if staleness is None else [])


def test_who_waits_goes_on_when_the_slowest_has_caught_up() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    assert ledger.apply(vote(ONE, 1)) == []
    assert ledger.apply(vote(TWO, 1)) == []
    answers = ledger.apply(vote(THREE, 1))
    assert asked(answers) == [ONE, TWO, THREE]
    assert only(answers, TWO).commit == Commit(Round(1), Generation(1), (TWO,))  # type: ignore[union-attr]
    assert ledger.round == 1


@pytest.mark.parametrize("end", [Leave(TWO), Observe((ONE,), 9), vote(TWO, 1, leaving=True)])
def test_who_waits_goes_on_when_the_slowest_is_gone(end: Command) -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1))
    assert ONE in asked(ledger.apply(end))
    assert ledger.clocks == {ONE: 1}


def test_a_joiner_begins_where_the_slowest_is() -> None:
    ledger = ledger_of(ONE, TWO, staleness=2)
    for number in (1, 2, 3):
        ledger.apply(vote(ONE, number))
        ledger.apply(vote(TWO, number))
    ledger.apply(vote(ONE, 4))
    admitted = only(ledger.apply(Join(THREE)), THREE)
    assert isinstance(admitted, Admitted)
    assert admitted.turn.round == 4
    assert admitted.floor == {ONE: 4, TWO: 3}


def test_a_clock_never_goes_back_though_all_leave() -> None:
    ledger = ledger_of(ONE)
    ledger.apply(vote(ONE, 1))
    ledger.apply(Leave(ONE))
    admitted = only(ledger.apply(Join(TWO)), TWO)
    assert isinstance(admitted, Admitted)
    assert admitted.turn.round == 2


# -- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (vote(ONE, 1), Committed),
        (vote(ONE, 3), Refused),
        (vote(ONE, 0), Refused),
        (vote(THREE, 1), Refused),
        (Ready(ONE, Round(2), Generation(1)), Refused),
        (Initialized(THREE), Refused),
        (Register(THREE, DATA), Refused),
        (Leave(THREE), Left),
        (Join(ONE), Admitted),
    ],
)
def test_a_question_out_of_turn_has_its_answer(late: Command, expected: type[Answer]) -> None:
    ledger = ledger_of(ONE, TWO)
    for worker in (ONE, TWO):
        ledger.apply(vote(worker, 1))
    assert isinstance(only(ledger.apply(late), late.worker), expected)  # type: ignore[union-attr]
    assert ledger.clocks == {ONE: 1, TWO: 1}


def test_a_vote_that_waits_is_not_answered_by_asking_again() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1))
    before = encoded(ledger)
    assert ledger.apply(vote(ONE, 1)) == []
    assert encoded(ledger) == before


def test_a_worker_that_leaves_with_its_vote_hears_so_however_late() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None)
    first = only(ledger.apply(vote(ONE, 1, leaving=True)), ONE)
    assert isinstance(first, Committed)
    assert first.turn is None
    again = only(ledger.apply(vote(ONE, 1, leaving=True)), ONE)
    assert isinstance(again, Committed)
    assert (again.commit, again.turn) == (first.commit, None)


# -- the floor ----------------------------------------------------------------------------------


def test_the_floor_is_each_members_newest_acknowledged_push() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None)
    ledger.apply(vote(ONE, 1, seq=4))
    committed = only(ledger.apply(vote(TWO, 1, seq=9)), TWO)
    assert isinstance(committed, Committed)
    assert committed.floor == {ONE: 4, TWO: 9}


def test_a_vote_without_a_push_raises_no_floor() -> None:
    """No block has a push of this worker: a read that asks for one would never be answered."""
    ledger = ledger_of(ONE, TWO, staleness=None)
    committed = only(ledger.apply(vote(ONE, 1, seq=0, contributes=False)), ONE)
    assert isinstance(committed, Committed)
    assert committed.floor == {}


# -- data ---------------------------------------------------------------------------------------


def test_samples_are_read_with_the_vote_and_come_back_from_the_dead() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DATA)
    assert ledger.leases == {ONE: (Range(0, 1),), TWO: (Range(1, 2),)}
    ledger.apply(vote(ONE, 1))
    assert ledger.leases == {ONE: (Range(2, 3),), TWO: (Range(1, 2),)}
    ledger.apply(Observe((ONE,), 9))
    ledger.apply(vote(ONE, 2))
    assert ledger.leases == {ONE: (Range(1, 2), Range(3, 4))}


def test_a_worker_is_lent_what_it_was_told_to_load_beforehand() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(20, 2, 1, 0), ahead=2)
    for number in range(1, 4):
        ledger.apply(vote(ONE, number))
    turn = ledger.turn(ONE)
    assert len(turn.ahead) == 2
    for number in range(4, 8):
        turn, before = only(ledger.apply(vote(ONE, number)), ONE).turn, turn  # type: ignore[union-attr]
        assert (turn.samples, turn.ahead[0]) == before.ahead
    assert len(ledger.turn(TWO).ahead) == 2


def test_what_is_reserved_for_a_slow_worker_is_lent_to_who_would_have_nothing() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(10, 2, 1, 0), ahead=3)
    for number in range(1, 10):
        assert asked(ledger.apply(vote(ONE, number))) == ([ONE] if number < 9 else [])
    assert ledger.turn(TWO).ahead == ()
    assert len(ledger.apply(vote(TWO, 1))) == 2
    assert ledger.turn(TWO).exhausted


@pytest.mark.parametrize("end", [Leave(TWO), Observe((ONE,), 9), vote(TWO, 1, leaving=True)])
def test_what_was_reserved_for_a_worker_that_is_gone_is_read_by_others(end: Command) -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(10, 2, 1, 0), ahead=3)
    ledger.apply(vote(ONE, 1))
    assert ledger.turn(TWO).ahead
    reads = Counter({0: 1})
    if isinstance(end, Vote):
        reads.update(positions(ledger.turn(TWO).samples))
    ledger.apply(end)
    for number in range(2, 12):
        reads.update(positions(ledger.turn(ONE).samples))
        ledger.apply(vote(ONE, number, contributes=not ledger.turn(ONE).exhausted))
    assert reads == Counter(range(10))


def test_a_checkpoint_counts_what_is_reserved_as_not_read() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(10, 2, 1, 0), ahead=3)
    ledger.apply(vote(ONE, 1))
    supply = ledger.cut().supply
    assert supply.position - len(positions(supply.given_back)) == 1


def test_nobody_is_told_that_the_data_are_read_while_another_has_some() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(2, 2, 1, 0))
    assert ledger.apply(vote(ONE, 1)) == []
    answers = ledger.apply(vote(TWO, 1))
    assert asked(answers) == [ONE, TWO]
    assert all(answer.turn.exhausted for _, answer in answers)  # type: ignore[union-attr]


# -- any order ----------------------------------------------------------------------------------


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


def positions(ranges: Iterable[Range]) -> list[int]:
    return [position for part in ranges for position in range(part.start, part.stop)]


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


def test_the_bound_makes_the_fast_wait_for_the_slowest_by_name() -> None:
    ledger = ledger_of(ONE, TWO, THREE, staleness=1)
    for worker, number in ((ONE, 1), (TWO, 1), (ONE, 2)):
        assert ledger.awaited == []
        ledger.apply(vote(worker, number))
    assert ledger.awaited == [THREE]
    ledger.apply(vote(THREE, 1))
    assert ledger.awaited == []
