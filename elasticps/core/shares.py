"""How many of a job's workers each node runs: who runs stays, the others are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from elasticps.core.ids import NodeId, WorkerId
from elasticps.core.records import LivingWorker, ScaleRecord


def seniority(worker: WorkerId, scale: ScaleRecord | None) -> tuple[int, WorkerId]:
    """A sort key: the lower, the longer a worker stays where there are to be fewer.

    By the ranks of the time of the request, the main worker first; who came since is later.
    """
    ranks = scale.ranks if scale else ()
    return (ranks.index(worker) if worker in ranks else len(ranks), worker)


def share(
    slots: Mapping[NodeId, int],
    most: int,
    running: Sequence[LivingWorker],
    before: Mapping[NodeId, int],
    scale: ScaleRecord | None = None,
) -> dict[NodeId, int]:
    """Up to ``most`` workers, at most ``slots`` a node: those that run, then those that were wanted
    ``before`` already, then one after the other where there are the fewest.
    """
    shares = dict.fromkeys(sorted(slots), 0)
    left = most

    def take(node: NodeId, count: int) -> None:
        nonlocal left
        taken = max(0, min(count, left, slots.get(node, 0) - shares.get(node, 0)))
        if taken:
            shares[node] += taken
            left -= taken

    for life in sorted(running, key=lambda life: seniority(life.worker, scale)):
        take(life.record.node, 1)
    for node in sorted(before):
        take(node, before[node] - shares.get(node, 0))
    seats = [(seat, node) for node in shares for seat in range(shares[node], slots[node])]
    for _, node in sorted(seats)[:left]:
        take(node, 1)
    return {node: count for node, count in shares.items() if count}
