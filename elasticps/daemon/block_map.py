"""Where all blocks lie, counted by node and role, and row by row.

The counting is the picture's; what is added up from it is kept until the view's next revision.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec

from elasticps.core.blocks import DTYPE_BYTES, Model
from elasticps.core.ids import LEDGER, BlockId, JobKey, JobName, NodeId, ServerId, node_of
from elasticps.core.plan import PART_BLOCKS, Entry
from elasticps.daemon.picture import Held, JobPicture, Picture, by_node
from elasticps.daemon.timeline import Timeline
from elasticps.daemon.view import ClusterView


class HeldRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a node holds of a job: replicas by role, and the bytes of their blocks' values."""

    primary: int
    backup: int
    learner: int
    bytes: int


class NodeBlocks(msgspec.Struct, frozen=True, kw_only=True):
    node: NodeId
    jobs: dict[JobName, HeldRow]


class BlockRow(msgspec.Struct, frozen=True, kw_only=True):
    """One block: the parameter that it is of, where the model is known, and who holds it."""

    block: BlockId
    name: str | None
    bytes: int
    primary: NodeId
    backups: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """All that the present revision's aggregates are made of."""

    revision: int
    jobs: Mapping[JobName, Mapping[NodeId, Held]]


class BlockMap:
    """Answers from the timeline's picture."""

    def __init__(self, view: ClusterView, timeline: Timeline) -> None:
        self._view = view
        self._timeline = timeline
        self._totals = Totals(revision=-1, jobs={})
        self._names: dict[JobKey, tuple[Model, _Names]] = {}

    @property
    def picture(self) -> Picture:
        return self._timeline.picture

    def totals(self) -> Totals:
        """By job and node, of every job that has a plan."""
        picture = self.picture
        if self._totals.revision != picture.revision:
            self._totals = Totals(
                revision=picture.revision,
                jobs={
                    name: by_node(job.tallies.values())
                    for name, job in picture.jobs.items()
                    if job.tallies
                },
            )
            living = {job.key for job in picture.jobs.values()}
            self._names = {key: known for key, known in self._names.items() if key in living}
        return self._totals

    def nodes(self, job: JobName | None = None) -> list[NodeBlocks]:
        """What each node holds, of one job or of all; those too that hold nothing."""
        totals = self.totals().jobs
        chosen = totals if job is None else {job: totals[job]} if job in totals else {}
        nodes: dict[NodeId, dict[JobName, HeldRow]] = {node: {} for node in self.picture.nodes}
        for name, held in chosen.items():
            for node, each in held.items():
                nodes.setdefault(node, {})[name] = HeldRow(
                    primary=each.primary,
                    backup=each.backup,
                    learner=each.learner,
                    bytes=each.bytes,
                )
        return [NodeBlocks(node=node, jobs=nodes[node]) for node in sorted(nodes)]

    def blocks(self, job: JobName | None = None) -> int:
        """How many blocks have a place."""
        jobs = self.picture.jobs
        chosen = jobs.values() if job is None else [jobs[job]] if job in jobs else []
        return sum(each.blocks for each in chosen)

    def leads_and_holds(self, servers: set[ServerId]) -> tuple[int, int]:
        """Of how many blocks of active jobs they are primaries, and how many replicas they have."""
        jobs = [job for job in self.picture.jobs.values() if job.active]
        held = [job.held(server) for job in jobs for server in servers]
        return sum(each.primary for each in held), sum(each.replicas for each in held)

    def rows(
        self, name: JobName, node: NodeId | None, after: BlockId, limit: int
    ) -> tuple[list[BlockRow], BlockId | None]:
        """The job's blocks behind ``after``, those alone that ``node`` holds; the last one's id.

        The id is None where there are no more.
        """
        job = self.picture.jobs.get(name)
        if job is None:
            return [], None
        names = self._names_of(name, job)
        rows: list[BlockRow] = []
        for entry in _behind(job, node, after):
            if len(rows) == limit:
                return rows, rows[-1].block
            rows.append(_row(entry, job, names))
        return rows, None

    def _names_of(self, name: JobName, job: JobPicture) -> _Names | None:
        view = self._view.jobs.get(name)
        model = view.model if view else None
        if model is None:
            return None
        known = self._names.get(job.key)
        if known is None or known[0] is not model:
            known = self._names[job.key] = (model, _Names(model, job.sizes))
        return known[1]


class _Names:
    """Which parameter a block is of, by the last block of each: a block is never of two."""

    def __init__(self, model: Model, sizes: Sequence[int]) -> None:
        self._names = [parameter.name for parameter in model.parameters]
        ends = accumulate(
            parameter.numel * DTYPE_BYTES[parameter.dtype] for parameter in model.parameters
        )
        # Bytes of values before and with each block; the ledger, which is first, has none.
        filled = list(accumulate(sizes[1:], initial=0))
        self._last = [bisect_left(filled, end) for end in ends]

    def of(self, block: BlockId) -> str | None:
        if block == LEDGER:
            return "ledger"
        index = bisect_left(self._last, block)
        return self._names[index] if index < len(self._names) else None


def _behind(job: JobPicture, node: NodeId | None, after: BlockId) -> Iterator[Entry]:
    """Entries in block order; parts that hold nothing of the node are passed over."""
    for number, tally in job.tallies.items():
        if (number + 1) * PART_BLOCKS <= after + 1:
            continue
        mine = {server for server in tally.held if node_of(server) == node}
        if node is not None and not mine:
            continue
        for entry in tally.part.entries:
            if entry.block > after and (node is None or not mine.isdisjoint(entry.servers)):
                yield entry


def _row(entry: Entry, job: JobPicture, names: _Names | None) -> BlockRow:
    return BlockRow(
        block=entry.block,
        name=names.of(entry.block) if names else None,
        bytes=job.size_of(entry.block),
        primary=node_of(entry.primary),
        backups=tuple(node_of(server) for server in entry.in_sync),
        learners=tuple(node_of(server) for server in entry.learners),
        epoch=int(entry.epoch),
    )
