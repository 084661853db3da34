"""What every data policy must do with the samples, whoever comes, leaves and dies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random

from elasticps.api.data_policy import DataPolicy, Lending, Loans, Range
from elasticps.core.ids import WorkerId
from elasticps.core.lending import Ranges, settled
from elasticps.core.ranges import DataSpec, Supply, count_of
from elasticps.testing.kit import Case, ContractBroken, Subject, require

SHAPES = ((1, 1, 1), (7, 3, 2), (30, 9, 3), (64, 64, 1), (101, 10, 2))
"""Samples, batch size, data epochs."""
CROWDS = 4
EVERYBODY = tuple(WorkerId(number) for number in range(1, 7))
CROWDED = 256
QUESTIONS = 50


class Game:
    """A job's ledger as far as samples go; each turn some members are done, die, come and go.

    ``together``: all members borrow at once, as in synchronous rounds; else whoever is free.
    """

    def __init__(self, policy: DataPolicy, spec: DataSpec, seed: int, *, together: bool) -> None:
        self.read: Counter[int] = Counter()
        self._policy = policy
        self._spec = spec
        self._together = together
        self._random = Random(seed)  # noqa: S311 - a game
        self._supply = Supply()
        self._owned: Mapping[WorkerId, Ranges] = {}
        self._held: dict[WorkerId, Ranges] = {}
        self._members = [WorkerId(1)]

    def questions(self) -> Iterator[tuple[Lending, Loans]]:
        """Play until all is read; each question with its answer. Raises ContractBroken."""
        turns = 20 * self._spec.size * self._spec.epochs + 100
        for _ in range(turns):
            if asked := self._asked():
                loans = self._policy.lend(asked)
                self._take(asked, loans)
                yield asked, loans
            elif not self._held and self._supply.spent(self._spec):
                return
            self._go_on()
        raise ContractBroken(f"after {turns} turns not all of {self._spec} were read")

    def _asked(self) -> Lending | None:
        unread = self._supply.unread(self._spec)
        free = [worker for worker in self._members if worker not in self._held]
        if not unread or not free or (self._together and self._held):
            return None
        return Lending(
            size=self._spec.size,
            members=tuple(self._members),
            borrowers=tuple(free),
            wanted=max(1, self._spec.batch_size * len(free) // len(self._members)),
            unread=unread,
            owned=self._owned,
        )

    def _take(self, asked: Lending, loans: Loans) -> None:
        try:
            self._supply = settled(asked, loans, self._supply)
        except ValueError as error:
            raise ContractBroken(f"{error}; asked {asked}") from None
        lent = {worker: tuple(parts) for worker, parts in loans.lent.items() if parts}
        require(lent or self._held, f"lends nothing where nobody holds any; asked {asked}")
        self._owned = dict(loans.owned)
        self._held |= lent

    def _go_on(self) -> None:
        """Some are done with what they hold, some die with it; all, where they go together."""
        random = self._random
        for worker in list(self._held):
            if self._together or random.random() < 0.5:
                parts = self._held.pop(worker)
                if random.random() < 0.2:
                    self._supply = self._supply.returned(parts)
                else:
                    self.read.update(at for part in parts for at in range(part.start, part.stop))
        if random.random() < 0.4:
            self._members = sorted(random.sample(EVERYBODY, random.randint(1, len(EVERYBODY))))
            for worker in self._held.keys() - set(self._members):
                self._supply = self._supply.returned(self._held.pop(worker))
        self._owned = {who: each for who, each in self._owned.items() if who in self._members}


def _games(subject: Subject) -> Iterator[Game]:
    for size, batch, epochs in SHAPES:
        spec = DataSpec(size=size, batch_size=batch, epochs=epochs, seed=0)
        for seed in range(CROWDS):
            for together in (True, False):
                yield Game(subject.load(), spec, seed, together=together)


def every_sample_is_read_once(subject: Subject) -> None:
    """Members join, leave and die holding samples; what they held is lent again."""
    for game in _games(subject):
        for _ in game.questions():
            pass
        require(set(game.read.values()) == {1}, "some samples were read twice")


def equal_questions_have_equal_answers(subject: Subject) -> None:
    """Every replica of the ledger asks for itself: what it was asked before must not matter."""
    other = subject.load()
    for game in _games(subject):
        for asked, loans in game.questions():
            require(other.lend(asked) == loans, f"answers {asked} in two ways")


def lending_is_fast(subject: Subject) -> str:
    """Not held to a figure: it is on the way of every round."""
    members = tuple(WorkerId(number) for number in range(CROWDED))
    policy, owned = subject.load(), dict[WorkerId, Ranges]()
    began = time.perf_counter()
    for question in range(QUESTIONS):
        unread = (Range(question * CROWDED * 8, QUESTIONS * CROWDED * 8),)
        asked = Lending(
            size=QUESTIONS * CROWDED * 8,
            members=members,
            borrowers=members,
            wanted=CROWDED * 8,
            unread=unread,
            owned=owned,
        )
        loans = policy.lend(asked)
        require(count_of(part for each in loans.lent.values() for part in each), "lends nothing")
        owned = dict(loans.owned)
    took = (time.perf_counter() - began) / QUESTIONS
    return f"{took * 1e3:.2f} ms to lend a round's samples to {CROWDED} workers"


CASES = (
    Case(check=every_sample_is_read_once, quick=True),
    Case(check=equal_questions_have_equal_answers, quick=True),
    Case(check=lending_is_fast),
)
