"""The ledger's promises in any order of joins, votes, leaves, deaths and failovers."""

from __future__ import annotations

from collections import Counter
from itertools import product
from random import Random

import pytest

from elasticps.core.commands import Hold, Publish, Regroup
from elasticps.core.ids import WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.lending import DYNAMIC, LEASED, LOCAL, STATIC
from elasticps.core.ranges import DataSpec, Range
from tests.support.ledger_world import Worker, World

ACTS = {
    "go_on": 30,
    "all_go_on": 5,
    "go_on_unheard": 3,
    "ask_again": 3,
    "join": 3,
    "retire": 2,
    "leave": 1,
    "die": 2,
    "be_declared_dead_though_alive": 1,
    "list_living": 1,
    "observe": 3,
    "receive_a_late_copy": 2,
    "fail_over": 1,
    "regroup": 1,
    "leave_a_note": 1,
}
LOCAL_ACTS = {**ACTS, "say_what_is_local": 3}


class Walk:
    """Joins, questions, lost answers, late copies, leaves, deaths and failovers, from a seed.

    ``World`` checks the promises at every step; the end checks that all get through.
    """

    def __init__(self, seed: int, data_policy: str) -> None:
        self._random = Random(seed)
        data = DataSpec(
            size=self._random.randint(1, 14),
            batch_size=self._random.randint(1, 6),
            epochs=self._random.randint(1, 2),
            seed=0,
        )
        start_workers = self._random.randint(1, 3)
        self.world = World(
            Ledger(start_workers=start_workers, data_policy=data_policy),
            self._random.choice([None, data]),
            push_every=self._random.choice([1, 1, 3]),
        )
        self._lists: list[tuple[tuple[WorkerId, ...], int]] = [((), 0)]
        for _ in range(start_workers):
            self.join()

    def run(self, steps: int) -> None:
        may = LOCAL_ACTS if self.world.ledger.data_policy == LOCAL else ACTS
        acts = self._random.choices(list(may), weights=list(may.values()), k=steps)
        for act in acts:
            getattr(self, act)()
        self.world.settle(rounds=2)
        data = self.world.ledger.data
        if data is not None:
            assert self.world.committed == Counter(range(data.size * data.epochs))

    def _some(self, workers: list[Worker]) -> list[Worker]:
        """One of them, where there is one."""
        return [self._random.choice(workers)] if workers else []

    @property
    def idle(self) -> list[Worker]:
        return [worker for worker in self.world.living if worker.idle]

    def join(self) -> None:
        if len(self.world.living) < 5:
            self.world.ask(self.world.spawn())

    def go_on(self) -> None:
        for worker in self._some(self.idle):
            self.world.ask(worker)

    def go_on_unheard(self) -> None:
        for worker in self._some(self.idle):
            self.world.ask(worker, heard=False)

    def all_go_on(self) -> None:
        for worker in self.idle:
            if worker.idle:
                self.world.ask(worker)

    def ask_again(self) -> None:
        for worker in self._some([one for one in self.world.living if one.asked]):
            self.world.ask(worker)

    def retire(self) -> None:
        for worker in self._some(self.idle):
            worker.retiring = True

    def leave(self) -> None:
        for worker in self._some([one for one in self.idle if one.turn]):
            self.world.removals += 1
            self.world.leave(worker)

    def die(self) -> None:
        for worker in self._some(self.world.living):
            worker.living = False
            self.world.removals += 1
            self.list_living()
            if self._random.random() < 0.5:
                self.world.observe(*self._lists[-1])

    def be_declared_dead_though_alive(self) -> None:
        for out in self._some(self.world.living):
            self.world.removals += 1
            self.list_living()
            alive, revision = self._lists.pop()
            self._lists.append((tuple(name for name in alive if name != out.id), revision))
            self.world.observe(*self._lists[-1])

    def list_living(self) -> None:
        self.world.revision += 1
        self._lists.append((self.world.listed, self.world.revision))

    def observe(self) -> None:
        """Somebody's list arrives, new or old."""
        self.world.observe(*self._random.choice(self._lists[-4:]))

    def receive_a_late_copy(self) -> None:
        self.world.check_repeat(self._random.choice(self.world.applied))

    def fail_over(self) -> None:
        self.world.fail_over()

    def regroup(self) -> None:
        """A worker that has not voted yet says so; its vote is told who takes part now."""
        for worker in self._some([one for one in self.idle if one.turn]):
            assert worker.turn is not None
            seats = self._random.random() < 0.5
            self.world.apply(Regroup(worker.id, worker.turn.generation, seats))

    def leave_a_note(self) -> None:
        for worker in self._some(self.idle):
            self.world.apply(Publish(worker.id, "address", b"at %d" % worker.id))
            gone = [name for name in self.world.ledger.notes if self.world.ledger._is_gone(name)]
            assert gone == []

    def say_what_is_local(self) -> None:
        for worker in self._some([one for one in self.idle if one.turn]):
            start = self._random.randint(0, 20)
            parts = (Range(start, start + 2), Range(start + 5, start + 9))
            hold = Hold(worker.id, len(self.world.applied), parts)
            self.world.apply(hold)


@pytest.mark.parametrize(
    ("block", "data_policy"),
    [*product(range(4), [DYNAMIC, STATIC]), (0, LEASED), (1, LOCAL)],
)
def test_rounds_are_whole_and_samples_read_once_whatever_happens_in_whatever_order(
    block: int, data_policy: str
) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        try:
            Walk(seed, data_policy).run(steps=80)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
