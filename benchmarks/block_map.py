"""The block map and the timeline at 1,000 nodes and 100,000 blocks of three copies.

    python benchmarks/block_map.py [--nodes 1000] [--blocks 100000]

Prints what a daemon spends: on the first picture, on a plan write that changes one part, on adding
up for the first reader of a revision and for the next, on a page of rows, and on a whole failover.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import msgspec

from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import BlockId, JobName, NodeId, PlanEpoch, ServerId, node_of
from elasticps.core.plan import Entry, encode_part, parts
from elasticps.core.records import JobSpec, NodeRecord, ServerRecord, encode
from elasticps.daemon.block_map import BlockMap
from elasticps.daemon.timeline import Timeline
from elasticps.daemon.view import ClusterView
from elasticps.store import Changes, Event, Keys, KeyValue

JOB = JobName("job")
BLOCK_BYTES = 4096


class Made:
    """A view that is told of keys as a watch would."""

    def __init__(self) -> None:
        self.keys = Keys("bench")
        self.view = ClusterView(self.keys)
        self.timeline = Timeline(self.view)
        self.map = BlockMap(self.view, self.timeline)
        self._revision = 0

    def write(self, values: dict[str, bytes | None]) -> None:
        """All in one revision."""
        self._revision += 1
        events = tuple(
            Event(key=key, revision=self._revision, kv=self._kv(key, value))
            for key, value in values.items()
        )
        self.view.apply(Changes(events=events, revision=self._revision))

    def _kv(self, key: str, value: bytes | None) -> KeyValue | None:
        if value is None:
            return None
        return KeyValue(
            key=key, value=value, create_revision=1, mod_revision=self._revision, lease=0
        )

    def plan(self, entries: list[Entry]) -> dict[str, bytes | None]:
        by_part = parts(entries)
        return {self.keys.plan_part(JOB, part): encode_part(by_part[part]) for part in by_part}


def filled(nodes: int, blocks: int) -> tuple[Made, list[Entry]]:
    made, seeded = Made(), random.Random(0)
    servers = [ServerId(f"n{number}/1") for number in range(nodes)]
    values: dict[str, bytes | None] = {}
    for server in servers:
        record = NodeRecord(
            node=node_of(server),
            incarnation="1",
            machine=str(server),
            http=f"http://{node_of(server)}:7400",
            version="0",
            servers=(ServerRecord(server=server, tcp="", unix=""),),
        )
        values[made.keys.node(node_of(server))] = encode(record)
    shape = ((blocks - 1) * BLOCK_BYTES // 4,)
    weight = Parameter(name="weight", shape=shape, dtype="float32")
    model = Model(parameters=(weight,), optimizer="sgd", groups=({},), block_bytes=BLOCK_BYTES)
    values[made.keys.job_spec(JOB)] = encode(JobSpec(name=JOB, argv=("train.py",), cwd="/"))
    values[made.keys.job_model(JOB)] = encode(model)
    entries = []
    for block in range(blocks):
        homes = seeded.sample(servers, 3)
        entries.append(
            Entry(
                block=BlockId(block),
                primary=homes[0],
                in_sync=tuple(homes[1:]),
                epoch=PlanEpoch(7),
            )
        )
    made.write(values | made.plan(entries))
    return made, entries


def timed(what: str, act: Callable[[], object]) -> None:
    began = time.perf_counter()
    act()
    print(f"{what:<64} {(time.perf_counter() - began) * 1e3:9.3f} ms")


def main(nodes: int, blocks: int) -> None:
    made, entries = filled(nodes, blocks)
    timed("the first picture: every part is counted", made.timeline.look)
    made.write({made.keys.leader: b"n0"})
    timed("a look after a change that is no plan's", made.timeline.look)
    made.write(made.plan(entries[:2048]))
    timed("a look after a plan write of one part of 2,048 blocks", made.timeline.look)
    timed("the map, first reader of a revision", lambda: msgspec.json.encode(made.map.nodes()))
    timed("the map, its aggregates again", made.map.totals)
    node = NodeId("n1")
    timed("1,000 rows", lambda: made.map.rows(JOB, None, BlockId(-1), 1000))
    timed("all rows of one node", lambda: made.map.rows(JOB, node, BlockId(-1), 1000))
    every = [{ServerId(f"n{number}/1")} for number in range(nodes)]
    timed(
        "what each node leads and holds", lambda: [made.map.leads_and_holds(one) for one in every]
    )
    dead = entries[0].primary
    moved = [
        Entry(block=each.block, primary=each.in_sync[0], in_sync=each.in_sync[1:])
        if each.primary == dead
        else each
        for each in entries
    ]
    gone: dict[str, bytes | None] = {made.keys.node(node_of(dead)): None}
    made.write(gone | made.plan(moved))
    newest = made.timeline.newest
    timed("a node's death and all of its failover in one look", made.timeline.look)
    for event in made.timeline.page(newest).events:
        print(f"    {event.kind.value}: {event.what}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--nodes", type=int, default=1000)
    options.add_argument("--blocks", type=int, default=100_000)
    chosen = options.parse_args()
    main(chosen.nodes, chosen.blocks)
