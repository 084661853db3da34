"""What a shard server counts while it serves, as its daemon is told of it.

Counts begin at 0 with the process and never fall. They are plain numbers, added up where the work
is done: one loop has them, so they need no lock.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from elasticps.core.ids import JobKey, JobName, WorkerId


class JobCounts(msgspec.Struct, kw_only=True):
    """What one server has done for one job since the process began; added to in place.

    ``pushes`` were taken as primary, with ``pushed_bytes`` of payload as coded; ``pulls`` were
    answered. ``rounds`` were committed by the job's ledger while this server led it. ``steps`` of
    the optimizer, as any role, took ``apply_s``. ``discarded`` gradients were staged and then
    dropped with their round. ``snapshots`` and ``ops`` went to other replicas.
    Of the gradients, ``checked`` were looked at, and ``nonfinite`` of those had an inf or a NaN.
    """

    pushes: int = 0
    pushed_bytes: int = 0
    pulls: int = 0
    pulled_bytes: int = 0
    rounds: int = 0
    steps: int = 0
    apply_s: float = 0.0
    discarded: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0
    ops: int = 0
    op_bytes: int = 0
    checked: int = 0
    nonfinite: int = 0


class JobHolding(msgspec.Struct, frozen=True, kw_only=True):
    """What one server holds of one job now; blocks by role, the ledger being one.

    Of the blocks that it leads, ``lag_ops`` is how many ops the one that is furthest behind has
    that not every counted replica holds, and ``lag_s`` for how long at least one has lagged.
    ``staleness`` is how many rounds the slowest worker is behind the fastest, where it leads the
    ledger, else None; ``awaited`` are then the few workers that the others wait for.
    """

    primary: int = 0
    in_sync: int = 0
    learner: int = 0
    nbytes: int = 0
    lag_ops: int = 0
    lag_s: float = 0.0
    staleness: int | None = None
    awaited: tuple[WorkerId, ...] = ()


def together(holdings: Sequence[JobHolding]) -> JobHolding:
    """What several servers hold of one job: blocks and bytes summed, the lags of the worst."""
    if len(holdings) == 1:
        return holdings[0]
    told = [each.staleness for each in holdings if each.staleness is not None]
    return JobHolding(
        primary=sum(each.primary for each in holdings),
        in_sync=sum(each.in_sync for each in holdings),
        learner=sum(each.learner for each in holdings),
        nbytes=sum(each.nbytes for each in holdings),
        lag_ops=max((each.lag_ops for each in holdings), default=0),
        lag_s=max((each.lag_s for each in holdings), default=0.0),
        staleness=max(told, default=None),
        awaited=tuple(worker for each in holdings for worker in each.awaited),
    )


class JobTally(msgspec.Struct, frozen=True, kw_only=True):
    job: JobKey
    name: JobName
    counts: JobCounts
    holding: JobHolding = JobHolding()


class Traffic(msgspec.Struct, kw_only=True):
    """Bytes of all connections of one transport, before any encryption; added to in place."""

    received: int = 0
    sent: int = 0


class ServerTally(msgspec.Struct, frozen=True, kw_only=True):
    """All that a server counts: by job, by transport, and pushes that were refused by status.

    ``loop_lag_s`` is by how much its loop was late with its last report.
    """

    jobs: tuple[JobTally, ...] = ()
    traffic: dict[str, Traffic] = {}
    refused: dict[str, int] = {}
    loop_lag_s: float = 0.0
