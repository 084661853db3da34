"""Nodes of two shard servers each: they share their node's blocks, and no block has both copies
on one node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from elasticps.core.ids import node_of
from elasticps.core.plan import Entry, decode_part
from elasticps.daemon.local_cluster import Place
from tests.integration.cluster.acts import LOOK_S, WAIT_S, Cluster, kill, started

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVERS = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    place = Place(options=("--shard-servers", str(SERVERS)))
    directory = tmp_path_factory.mktemp("shard-servers")
    async with started(2, directory, place=lambda _: place) as cluster:
        yield cluster


async def servers_of(cluster: Cluster, node: str) -> set[str]:
    record = await cluster.record(node)
    assert record is not None
    return {server.server for server in record.servers}


async def serving(cluster: Cluster) -> set[str]:
    """The servers that say that they hold blocks."""
    nodes = cluster.local.nodes.values()
    told = [await cluster.get("/api/v1/load", node.http) for node in nodes]
    rows = [row for each in told for row in each["servers"]]
    return {row["server"] for row in rows if row["load"]["blocks"]}


async def plan_of(cluster: Cluster, job: str) -> tuple[Entry, ...]:
    part = await cluster.local.store.get(cluster.local.keys.plan_part(job, 0))
    assert part is not None
    return decode_part(part.value, part.mod_revision)


async def test_each_leads_a_share_and_a_job_outlives_the_kill_of_one(cluster: Cluster) -> None:
    everyone = await servers_of(cluster, "n1") | await servers_of(cluster, "n2")
    assert len(everyone) == 2 * SERVERS
    job = await cluster.train(max_workers=2, replicas=2, audit=True)
    await job.is_trained_by("n1", "n2")
    await job.until(lambda look: look.under_replicated == 0 and look.pending_moves == 0, "is safe")
    for entry in await plan_of(cluster, job.name):
        assert {node_of(server) for server in entry.servers} == {"n1", "n2"}
    async with asyncio.timeout(WAIT_S):
        while await serving(cluster) != everyone:  # they say it once a second
            await asyncio.sleep(LOOK_S)

    first = await servers_of(cluster, "n1")
    kill(await cluster.shard_server_pid("n1"))

    await job.goes_on()
    await job.until(lambda look: look.under_replicated == 0 and look.pending_moves == 0, "is safe")
    async with asyncio.timeout(WAIT_S):
        while len(after := await servers_of(cluster, "n1")) < SERVERS:
            await asyncio.sleep(LOOK_S)
    assert len(after & first) == SERVERS - 1, "the other one lived on"
    ended = await job.finish()
    assert (ended.state, ended.verdict.lost, ended.verdict.duplicated) == ("SUCCEEDED", 0, 0)
