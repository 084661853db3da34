"""A job's checkpoints on a disk whose power goes now and then, held to their promises.

The code that writes and reads them is given, and is that of production.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Protocol

from elasticps.core.ids import Round
from elasticps.errors import CheckpointError
from elasticps.sim.checkers import Violation
from elasticps.sim.disk import Disk, PowerCut
from elasticps.sim.world import Outcome

ROOT = Path("/jobs/checkpoints")
STEPS_PER_ROUND = 25
"""About as many as there are from one checkpoint to the next."""


class Checkpoints(Protocol):
    """The checkpoints in one directory. Every call may raise CheckpointError."""

    def write(self, number: Round) -> None: ...

    def prune(self, keep: int) -> None: ...

    def complete(self) -> list[Round]:
        """The rounds of the complete ones, the newest first."""
        ...

    def newest(self) -> object:
        """All that the newest complete one holds. CheckpointError where a bit of it is wrong."""
        ...

    def content(self, number: Round) -> object:
        """The same of the checkpoint of a round."""
        ...


Open = Callable[[Disk, Path], Checkpoints]


class PowerCuts:
    """One seed's lives of a writer, each ended by a power cut.

    ``_held`` is what every checkpoint holds that has to be there.
    """

    def __init__(self, seed: int, open_: Open) -> None:
        self.seed = seed
        self.disk = Disk(Random(f"{seed}:disk"))
        self._random = Random(f"{seed}:checkpoints")
        self._keep = self._random.choice([1, 1, 2, 3])
        self._checkpoints = open_(self.disk, ROOT)
        self._held: dict[Round, object] = {}

    def run(self) -> Outcome:
        checker = violation = ""
        try:
            self._lives()
        except Violation as error:
            checker, violation = error.checker, str(error)
        disk = self.disk
        return Outcome(
            self.seed,
            disk.steps,
            disk.digest,
            checker=checker,
            violation=violation,
            faults=("power cut",),
            last_events=tuple(disk.trace[-50:]),
        )

    def _lives(self) -> None:
        for _ in range(self._random.randint(1, 3)):
            self._life()
            self.disk.restart()
            self._check()
            self._adopt()
        self._make(self._next())
        self._check()

    def _life(self) -> None:
        """Make some checkpoints, unless the power goes before."""
        rounds = self._random.randint(1, 4)
        self.disk.cut_at = self.disk.steps + self._random.randint(1, rounds * STEPS_PER_ROUND)
        try:
            for _ in range(rounds):
                self._make(self._next())
        except PowerCut:
            return

    def _next(self) -> Round:
        return Round(max(self._held, default=0) + self._random.randint(1, 5))

    def _make(self, number: Round) -> None:
        try:
            self._checkpoints.write(number)
            self._held[number] = self._checkpoints.content(number)
            self.disk.note(f"acknowledged {number}")
            self._held = {each: self._held[each] for each in sorted(self._held)[-self._keep :]}
            self._checkpoints.prune(self._keep)
        except CheckpointError as error:
            raise Violation("checkpoint-made", f"round {number}: {error}") from error

    def _check(self) -> None:
        """What was acknowledged and not pruned is there, and the newest one is whole."""
        there = self._checkpoints.complete()
        for number, content in self._held.items():
            if number not in there:
                raise Violation("checkpoint-kept", f"round {number} is gone, {there} are there")
            self._hold_whole("checkpoint-kept", number, content)
        for number in set(there) - self._held.keys():
            self._hold_whole("checkpoint-complete", number, None)
        if there:
            self._hold_whole("checkpoint-newest", None, self._held.get(there[0]))

    def _hold_whole(self, checker: str, number: Round | None, content: object) -> None:
        """``number`` is None for the newest, ``content`` where it was never acknowledged."""
        code = self._checkpoints
        try:
            found = code.newest() if number is None else code.content(number)
        except CheckpointError as error:
            raise Violation(checker, f"{number or 'the newest'} is damaged: {error}") from error
        if content is not None and found != content:
            raise Violation(checker, f"{number or 'the newest'} holds {found}, not {content}")

    def _adopt(self) -> None:
        """What came through a power cut stays, although nobody was told that it was made.

        Of an older one that was being removed some files may be gone: nobody goes on from that.
        """
        for number in self._checkpoints.complete():
            try:
                self._held[number] = self._checkpoints.content(number)
            except CheckpointError as error:
                self.disk.note(f"round {number} is no more: {error.field}")
