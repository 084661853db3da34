"""What a ledger answers, whom, and which samples that is about."""

from __future__ import annotations

from collections.abc import Iterable

from elasticps.core.commands import Answer, Answers
from elasticps.core.ids import WorkerId
from elasticps.core.ranges import Range


def only(answers: Answers, worker: WorkerId) -> Answer:
    (answer,) = [answer for name, answer in answers if name == worker]
    return answer


def asked(answers: Answers) -> list[WorkerId]:
    return [worker for worker, _ in answers]


def positions(ranges: Iterable[Range]) -> list[int]:
    return [position for part in ranges for position in range(part.start, part.stop)]
