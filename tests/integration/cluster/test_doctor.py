"""The doctor's questions to a real cluster: facts of its machines, links as its data goes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import msgspec
import pytest

from elasticps.cli.doctor.gather import gather
from elasticps.core.ids import NodeId
from elasticps.core.records import NodeRecord, ServerRecord
from elasticps.daemon.link_probe import LinkProbe
from elasticps.daemon.view import ClusterView
from elasticps.doctor.cluster import examine
from elasticps.doctor.finding import Level
from elasticps.store import Keys
from elasticps.wire.address import Address
from tests.integration.cluster.acts import Cluster
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="package")

MIB = 1 << 20
ME = NodeId("n1")


async def test_nodes_that_are_well_reach_each_other_and_agree(shared_cluster: Cluster) -> None:
    await shared_cluster.until(
        lambda status: [node.reachable for node in status.nodes] == [True, True], "both answer"
    )
    told: list[str] = []
    async with shared_cluster.api() as api:
        seen = await gather(api, told.append)
    assert set(seen.facts) == set(seen.links) == {"n1", "n2"}
    assert (seen.unasked, seen.unmeasured, seen.left_out) == ({}, {}, 0)
    for row in seen.links.values():
        (link,) = row
        assert not link.error
        assert link.round_trip_s
        assert link.bytes_per_s
    rows = examine(seen)
    assert [row for row in rows if row.level is Level.FAULT] == []
    assert any("2 links answer" in row.saw for row in rows)
    assert any("measuring the links" in text for text in told)


async def test_measuring_disturbs_no_training(shared_cluster: Cluster) -> None:
    training = await shared_cluster.train(max_workers=1, audit=True)
    await training.goes_on()
    async with shared_cluster.api() as api:
        await gather(api, lambda _: None)
    ended = await training.finish()
    assert (ended.state, ended.verdict.lost, ended.verdict.duplicated) == ("SUCCEEDED", 0, 0)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"bytes": -1}, "bytes"),
        ({"bytes": 1 << 40}, "bytes"),
        ({"to": ["n9"]}, "to"),
        ({"to": ["n1", "n2"]}, "to"),
        ({"too": []}, "too"),
        ({"to": "n2"}, "to"),
    ],
)
async def test_what_cannot_be_measured_is_refused(
    shared_cluster: Cluster, body: object, field: str
) -> None:
    async with (
        aiohttp.ClientSession(shared_cluster.url) as session,
        session.post("/api/v1/links", json=body) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["field"] == field


async def test_a_data_port_that_refuses_and_a_link_that_is_slow_are_seen(
    shared_cluster: Cluster,
) -> None:
    """n2 stands at a proxy's port: first of a link of half a megabyte a second, then of none."""
    record = await shared_cluster.record("n2")
    assert record is not None
    real = Address.parse(record.servers[0].tcp)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Slow(real.port, bytes_per_s=500_000))
        probe = LinkProbe(view_of(record, proxy.port), shared_cluster.local.keys.cluster, ME, None)
        (link,) = await probe.measure([NodeId("n2")], 16 * MIB)
        assert not link.error
        assert link.bytes_per_s
        assert link.bytes_per_s < 1e6
        await proxy.cut()
        (link,) = await probe.measure([NodeId("n2")], 0)
    assert "cannot connect" in link.error or "lost" in link.error or "closed" in link.error


def view_of(record: NodeRecord, port: int) -> ClusterView:
    """One where the node's shard server listens at another port."""
    moved = ServerRecord(
        server=record.servers[0].server,
        tcp=str(Address.tcp("127.0.0.1", port)),
        unix=record.servers[0].unix,
    )
    view = ClusterView(Keys("any"))
    view.nodes[record.node] = msgspec.structs.replace(record, servers=(moved,))
    return view


class Slow(Proxy):
    """A proxy that passes on no more than so many bytes a second each way."""

    def __init__(self, target_port: int, *, bytes_per_s: float) -> None:
        super().__init__(target_port)
        self._bytes_per_s = bytes_per_s

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, swallowing: bool
    ) -> None:
        while chunk := await source.read(1 << 14):
            await asyncio.sleep(len(chunk) / self._bytes_per_s)
            sink.write(chunk)
            await sink.drain()
