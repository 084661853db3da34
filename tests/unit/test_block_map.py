"""The map of blocks: it adds up, names what it can, and counts nothing twice, whatever the size."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest

from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import BlockId, JobName, NodeId, PlanEpoch, ServerId
from elasticps.core.plan import PART_BLOCKS, Entry, encode_part, parts
from elasticps.daemon import picture as picture_module
from elasticps.daemon.block_map import BlockMap
from elasticps.daemon.timeline import Timeline
from tests.support.contents import BLOCK_BYTES, Contents

JOB = JobName("job")


class Mapped(Contents):
    def __init__(self) -> None:
        super().__init__()
        self.timeline = Timeline(self.view)
        self.map = BlockMap(self.view, self.timeline)

    def planned(self, nodes: int, blocks: int, seed: int = 0) -> None:
        """A job whose blocks have two copies and, some, a learner, on random nodes."""
        for number in range(nodes):
            self.node(f"n{number}")
        job, random = self.job(), Random(seed)
        sizes = random.sample(range(1, blocks - 2), 2) if blocks > 4 else [1, 1]
        first, second = min(sizes), abs(sizes[0] - sizes[1]) or 1
        counts = {"first": first, "second": second, "third": blocks - 1 - first - second}
        self.put(self.keys.job_model(JOB), _model(counts))
        entries = []
        for block in range(blocks):
            homes = [ServerId(f"n{number}/1") for number in random.sample(range(nodes), 3)]
            entries.append(
                Entry(
                    block=BlockId(block),
                    primary=homes[0],
                    in_sync=(homes[1],),
                    learners=(homes[2],) if random.random() < 0.1 else (),
                    epoch=PlanEpoch(3),
                )
            )
        for part, stored in parts(entries).items():
            self.put(self.keys.plan_part(JOB, part), encode_part(stored))
        assert len(job.sizes) == blocks
        self.timeline.look()


def _model(counts: dict[str, int]) -> Model:
    parameters = tuple(
        Parameter(name=name, shape=(count * BLOCK_BYTES // 4,), dtype="float32")
        for name, count in counts.items()
    )
    return Model(parameters=parameters, optimizer="sgd", groups=({},), block_bytes=BLOCK_BYTES)


@pytest.mark.parametrize("seed", range(5))
def test_counts_add_up_to_the_blocks_and_to_the_rows(seed: int) -> None:
    cluster = Mapped()
    cluster.planned(7, 3 * PART_BLOCKS // 2, seed)
    nodes = cluster.map.nodes(JOB)
    held = [node.jobs[JOB] for node in nodes if node.jobs]
    rows, after = [], BlockId(-1)
    while after is not None:
        page, after = cluster.map.rows(JOB, None, after, 1000)
        rows += page
    blocks = cluster.map.blocks(JOB)
    assert sum(each.primary for each in held) == blocks == len(rows) == 3 * PART_BLOCKS // 2
    assert sum(each.backup for each in held) == blocks
    assert sum(each.learner for each in held) == sum(len(row.learners) for row in rows)
    copies = sum(row.bytes * (2 + len(row.learners)) for row in rows)
    assert sum(each.bytes for each in held) == copies
    assert [row.block for row in rows] == list(range(blocks))
    leads = Counter(row.primary for row in rows)
    assert {node.node: node.jobs[JOB].primary for node in nodes} == dict(leads)
    for number in range(7):
        assert cluster.map.leads_and_holds({ServerId(f"n{number}/1")})[0] == leads[f"n{number}"]


def test_each_block_has_the_name_of_its_parameter() -> None:
    cluster = Mapped()
    cluster.planned(4, 50)
    rows, _ = cluster.map.rows(JOB, None, BlockId(-1), 1000)
    model = cluster.view.jobs[JOB].model
    assert model is not None
    expected = ["ledger"]
    for parameter in model.parameters:
        expected += [parameter.name] * (parameter.numel * 4 // BLOCK_BYTES)
    assert [row.name for row in rows] == expected


def test_rows_of_one_node_are_those_that_it_holds_page_by_page() -> None:
    cluster = Mapped()
    cluster.planned(40, 2 * PART_BLOCKS)
    whole, _ = cluster.map.rows(JOB, None, BlockId(-1), 10_000)
    node = NodeId("n7")
    paged, after = [], BlockId(-1)
    while after is not None:
        page, after = cluster.map.rows(JOB, node, after, 10)
        assert len(page) <= 10
        paged += page
    assert paged == [row for row in whole if node in (row.primary, *row.backups, *row.learners)]
    assert cluster.map.rows(JOB, NodeId("nobody"), BlockId(-1), 10) == ([], None)
    assert cluster.map.rows(JobName("none"), None, BlockId(-1), 10) == ([], None)


def test_a_thousand_nodes_and_a_hundred_thousand_blocks_are_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[object] = []
    tally = picture_module._tally

    def noted(part, sizes):
        counted.append(part)
        return tally(part, sizes)

    monkeypatch.setattr(picture_module, "_tally", noted)
    cluster = Mapped()
    cluster.planned(1000, 100_000)
    all_parts = -(-100_000 // PART_BLOCKS)
    assert len(counted) == all_parts

    totals = cluster.map.totals()
    assert cluster.map.totals() is totals
    assert len(msgspec.json.encode(cluster.map.nodes())) < 1 << 20
    part = cluster.view.jobs[JOB].parts[3]
    cluster.put(cluster.keys.plan_part(JOB, 3), encode_part(part.entries))
    cluster.timeline.look()

    assert cluster.map.totals() is not totals
    assert len(counted) == all_parts + 1
    assert cluster.map.totals().jobs == totals.jobs
