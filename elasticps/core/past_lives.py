"""Lives of workers that have ended: what counts of them for good, and which need not be kept."""

from __future__ import annotations

from collections.abc import Iterable

from elasticps.core.records import LivingWorker, PastLives, WorkerState

KEPT = 32
"""Of the lives that broke off so many stay to be looked at, those that ended last."""
MOST_AT_ONCE = 64
"""They are deleted by one transaction, which has room for no more beside what else it writes."""
BROKEN_OFF = (WorkerState.KILLED, WorkerState.LEFT)
"""Ends after which a worker's part of the training is for others to do."""


def counted(past: PastLives, lives: Iterable[LivingWorker]) -> PastLives:
    """``past`` and what these have counted, in the order of their last words.

    Of a life that goes on, and so has told nothing yet, it is counted that there is one.
    """
    for life in sorted(lives, key=lambda life: (life.revision, life.worker)):
        record = life.record
        verdict = record.verdict
        past = PastLives(
            lives=past.lives + 1,
            verdict=past.verdict if verdict is None else past.verdict.plus(verdict),
            audited=past.audited + (verdict is not None),
            pushed_bytes=past.pushed_bytes + record.pushed_bytes,
            gradient_bytes=past.gradient_bytes + record.gradient_bytes,
            checkpoint_attempts=past.checkpoint_attempts.plus(record.checkpoint_attempts),
        )
    return past


def outlived(lives: Iterable[LivingWorker]) -> list[LivingWorker]:
    """Those of which nothing but the counts is needed any more, that ended first first.

    A life that failed, or ended in order, decides what becomes of the job: it stays.
    """
    ended = [life for life in lives if life.record.state in BROKEN_OFF]
    ended.sort(key=lambda life: (life.revision, life.worker))
    return ended[: max(0, len(ended) - KEPT)][:MOST_AT_ONCE]
