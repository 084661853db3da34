"""The examples of docs/placements.md and docs/data-policies.md do what the pages say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from elasticps.core.ids import BlockId, JobName, NodeId, ServerId, WorkerId
from elasticps.core.lending import Lending, settled
from elasticps.core.placement import Site
from elasticps.core.proposal import PlacedBlock, Situation, checked
from elasticps.core.ranges import DataSpec, Supply

DOCS = Path(__file__).parents[2] / "docs"


def example(page: str, name: str) -> Any:
    """The class ``name`` of the page's only Python block."""
    (source,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(source, page, "exec"), namespace)
    return namespace[name]


def test_the_placement_keeps_primaries_in_its_zone_and_copies_elsewhere() -> None:
    sites = tuple(
        Site(server=ServerId(f"n{n}/x"), node=NodeId(f"n{n}"), zone=f"rack-{1 + n % 2}")
        for n in range(4)
    )
    blocks = tuple(
        PlacedBlock(block=BlockId(n), size=4096, primary=ServerId("n0/x"), destined=())
        for n in range(5)
    )
    told = Situation(job=JobName("job"), replicas=2, sites=sites, blocks=blocks)
    placed = checked(example("placements.md", "Near")(zone="rack-2").propose(told), told)
    zones = {site.server: site.zone for site in sites}
    homes = [[zones[server] for server in home] for home in placed.proposal.values()]
    assert homes == [["rack-2", "rack-1"]] * 5


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_data_policy_lends_every_sample_once_in_one_piece_a_worker(workers: int) -> None:
    policy = example("data-policies.md", "OnePiece")(most=3)
    data = DataSpec(size=23, batch_size=7, epochs=2, seed=0)
    members = tuple(WorkerId(number) for number in range(1, workers + 1))
    supply, read = Supply(), Counter[int]()
    while unread := supply.unread(data):
        asked = Lending(
            size=23, members=members, borrowers=members, wanted=7, unread=unread, owned={}
        )
        loans = policy.lend(asked)
        assert all(len(parts) == 1 for parts in loans.lent.values())
        read.update(n for (part,) in loans.lent.values() for n in range(part.start, part.stop))
        supply = settled(asked, loans, supply)
    assert read == Counter(range(46))
