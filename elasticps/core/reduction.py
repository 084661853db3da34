"""Numbers that the members of a round put together: who has given which, and the sums.

A member that has voted for the round under way is past it, and is not waited for. So nobody waits
for ever: each member gives its numbers, votes, leaves, or dies.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from elasticps.core.commands import Answers, Reduce, Reduced
from elasticps.core.ids import Round, WorkerId

MAX_NUMBERS = 1024


class Reduction(msgspec.Struct, frozen=True):
    """``given`` waits for others; ``told`` is what each member was answered last."""

    given: dict[WorkerId, Reduce] = {}
    told: dict[WorkerId, tuple[Round, int, Reduced]] = {}

    def known(self, asked: Reduce) -> Reduced | None:
        """The answer to one that has come before, and was answered."""
        round_, number, answer = self.told.get(asked.worker, (Round(-1), 0, None))
        return answer if (round_, number) == (asked.round, asked.number) else None

    def is_over(self, asked: Reduce) -> bool:
        """Has the worker asked for later sums by now? Then this is a late copy."""
        round_, number, _ = self.told.get(asked.worker, (Round(-1), 0, None))
        given = self.given.get(asked.worker, asked)
        return (asked.round, asked.number) < max((round_, number), (given.round, given.number))

    def with_one(self, asked: Reduce) -> Reduction:
        return Reduction({**self.given, asked.worker: asked}, self.told)

    def without(self, gone: Collection[WorkerId]) -> Reduction:
        given = {worker: item for worker, item in self.given.items() if worker not in gone}
        told = {worker: item for worker, item in self.told.items() if worker not in gone}
        return Reduction(given, told)

    def settled(
        self, members: Collection[WorkerId], past: Collection[WorkerId]
    ) -> tuple[Reduction, Answers]:
        """Once all ``members`` but those who are ``past`` the round have given: the sums.

        Those of the same round and number belong together, and as many numbers.
        """
        if not self.given or any(
            member not in self.given and member not in past for member in members
        ):
            return self, []
        groups: dict[tuple[Round, int, int], list[Reduce]] = {}
        for worker in sorted(self.given):
            one = self.given[worker]
            groups.setdefault((one.round, one.number, len(one.numbers)), []).append(one)
        told, answers = dict(self.told), Answers()
        for (round_, number, _), group in groups.items():
            sums = zip(*(one.numbers for one in group), strict=True)
            answer = Reduced(
                tuple(sum(column) for column in sums),
                sum(one.weight for one in group),
                len(group),
            )
            for one in group:
                told[one.worker] = (round_, number, answer)
                answers.append((one.worker, answer))
        return Reduction({}, told), answers
