"""An etcd in memory whose every change reaches a view at once, and what stands in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import BlockId, JobName, NodeId, ServerId, server_of
from elasticps.core.plan import Entry
from elasticps.core.records import (
    CaughtUpRow,
    DrainRecord,
    JobSpec,
    NodeRecord,
    ReportRecord,
    ServerRecord,
    WorkerRecord,
    encode,
)
from elasticps.daemon.leader import Write
from elasticps.daemon.view import ClusterView, JobView
from elasticps.store import Changes, Compare, Delete, Event, Keys, KeyValue, Put, Snapshot
from elasticps.store.operations import Target

BLOCK_BYTES = 4096


class Contents:
    """Keys with revisions as etcd counts them. ``view`` has seen all of it."""

    def __init__(self) -> None:
        self.keys = Keys("test")
        self.view = ClusterView(self.keys)
        self.revision = 0
        self.items: dict[str, KeyValue] = {}

    def put(self, key: str, value: bytes | msgspec.Struct) -> int:
        self.revision += 1
        self._tell([self._put(key, value if isinstance(value, bytes) else encode(value))])
        return self.revision

    def delete(self, key: str) -> None:
        self.revision += 1
        del self.items[key]
        self._tell([Event(key=key, revision=self.revision, kv=None)])

    def write(self, write: Write) -> None:
        """Carry out a leader's write as one transaction; what it compares must hold."""
        assert all(self.holds(compare) for compare in write.compares), write
        self.revision += 1
        events: list[Event] = []
        for operation in write.operations:
            if isinstance(operation, Put):
                events.append(self._put(operation.key, operation.value))
            else:
                events += self._deleted(operation)
        self._tell(events)

    def list_again(self) -> ClusterView:
        """Another view that knows it all from one listing, as a new daemon's does."""
        view = ClusterView(self.keys)
        items = tuple(self.items[key] for key in sorted(self.items))
        view.apply(Snapshot(items=items, revision=self.revision))
        return view

    def _put(self, key: str, value: bytes) -> Event:
        known = self.items.get(key)
        created = known.create_revision if known else self.revision
        kv = self.items[key] = KeyValue(
            key=key, value=value, create_revision=created, mod_revision=self.revision, lease=0
        )
        return Event(key=key, revision=self.revision, kv=kv)

    def _deleted(self, delete: Delete) -> list[Event]:
        gone = [key for key in self.items if key == delete.key]
        if delete.prefix:
            gone = [key for key in self.items if key.startswith(delete.key)]
        for key in gone:
            del self.items[key]
        return [Event(key=key, revision=self.revision, kv=None) for key in gone]

    def holds(self, compare: Compare) -> bool:
        """Whether a transaction with this condition would be carried out."""
        known = self.items.get(compare.key)
        if known is None:
            return compare.revision == 0
        created = compare.target is Target.CREATED
        return compare.revision == (known.create_revision if created else known.mod_revision)

    def _tell(self, events: list[Event]) -> None:
        self.view.apply(Changes(events=tuple(events), revision=self.revision))

    # -- what stands in it ----------------------------------------------------------------------

    def node(self, name: str, server: str | None = "1", **fields: Any) -> ServerId | None:
        """Register a node; ``server`` is its shard server's incarnation, None: it has none."""
        listed = () if server is None else (server_record(name, server),)
        record = NodeRecord(
            node=NodeId(name),
            incarnation="0",
            machine="m",
            http=f"http://{name}",
            version="0",
            servers=listed,
            **fields,
        )
        self.put(self.keys.node(name), record)
        return listed[0].server if listed else None

    def gone(self, name: str) -> None:
        """The node's lease has run out."""
        self.delete(self.keys.node(name))

    def drain(self, name: str, *, stay: bool = False) -> None:
        self.put(self.keys.drain(name), DrainRecord(stay=stay))

    def job(self, name: str = "job", **fields: Any) -> JobView:
        spec = JobSpec(name=JobName(name), argv=("train.py",), cwd="/", **fields)
        self.put(self.keys.job_spec(name), spec)
        return self.view.jobs[JobName(name)]

    def described(self, job: JobView, blocks: int) -> None:
        """The job's first worker has told its model, of so many blocks beside the ledger."""
        self.put(self.keys.job_model(job.name), model_of(blocks))

    def worker(self, job: JobView, uid: str, **fields: Any) -> None:
        node = NodeId(uid.rpartition(".")[0])
        self.put(self.keys.worker(job.name, uid), WorkerRecord(node=node, **fields))

    def promised(self, job: JobView, node: str, entries: Mapping[ServerId, list[Entry]]) -> None:
        """The primaries on ``node`` wait for these learners of their entries."""
        rows = tuple(
            CaughtUpRow(entry.block, learner, entry.epoch, 2 * BLOCK_BYTES)
            for learner, held in entries.items()
            for entry in held
        )
        known = job.reports.get(NodeId(node), ReportRecord(()))
        self.put(self.keys.report(job.name, node), msgspec.structs.replace(known, rows=rows))

    def preferred(self, job: JobView, node: str, *spans: tuple[int, int]) -> None:
        """Workers on ``node`` wish these blocks led there."""
        blocks = tuple((BlockId(first), BlockId(stop)) for first, stop in spans)
        known = job.reports.get(NodeId(node), ReportRecord(()))
        self.put(self.keys.report(job.name, node), msgspec.structs.replace(known, wishes=blocks))


def server_record(node: str, incarnation: str) -> ServerRecord:
    server = server_of(NodeId(node), incarnation)
    return ServerRecord(server=server, tcp=f"tcp:{node}:1", unix=f"unix:/{node}")


def model_of(blocks: int) -> Model:
    """One parameter of so many blocks of 4 KiB."""
    weight = Parameter(name="weight", shape=(blocks * BLOCK_BYTES // 4,), dtype="float32")
    return Model(parameters=(weight,), optimizer="sgd", groups=({},), block_bytes=BLOCK_BYTES)
