"""Who is found dead before any lease could run out, and who is not, among real daemons.

The tests are the acts of one play, in order. A lease outlives each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import pytest_asyncio

from elasticps.cli import answers
from elasticps.core.records import NodeRecord, decode
from elasticps.store import Changes, revoke
from tests.integration.cluster.acts import Cluster, kill, started
from tests.support.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE_TTL_S = 60
SOONER_S = LEASE_TTL_S / 2
"""A lease was renewed less than a third of its time ago: it lasts longer than this."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    directory = tmp_path_factory.mktemp("failure-detection")
    async with started(3, directory, lease_ttl_s=LEASE_TTL_S) as cluster:
        yield cluster


async def leader_and_others(cluster: Cluster) -> tuple[str, list[str]]:
    """Of the three nodes, once the daemon that is asked has seen them all."""

    def roles(status: answers.Status) -> tuple[str, list[str]] | None:
        names = [node.node for node in status.nodes]
        if len(names) != 3 or status.leader not in names:
            return None
        return status.leader, [name for name in names if name != status.leader]

    return await cluster.until(roles, "three nodes, one leads")


async def pids(cluster: Cluster, node: str) -> list[int]:
    """The daemon's and its children's."""
    row = await cluster.node(node)
    assert row is not None
    children = [child.pid for child in row.children if child.pid]
    return [cluster.local.nodes[node].process.pid, *children]


async def watched(cluster: Cluster, node: str, *, by: str) -> None:
    """Wait until the daemon ``by`` has a connection to that of ``node``."""
    port = urlsplit(cluster.local.nodes[node].http).port
    pid = cluster.local.nodes[by].process.pid
    await until(lambda: port in connected_ports(pid))


def connected_ports(pid: int) -> set[int]:
    """The ports at the other ends of a process's TCP connections."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.add(str(entry.readlink()))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[2].partition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in sockets}


async def removed(cluster: Cluster, node: str) -> None:
    async with asyncio.timeout(SOONER_S):
        while await cluster.record(node) is not None:
            await asyncio.sleep(0.01)


async def test_shard_server_that_is_stuck_is_ended_and_replaced(cluster: Cluster) -> None:
    pid = await cluster.shard_server_pid("n2")
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(2 * SOONER_S):
        while await cluster.shard_server_pid("n2") == pid:
            await asyncio.sleep(0.1)


async def test_killed_shard_server_leaves_the_registration_before_the_next_one_enters(
    cluster: Cluster,
) -> None:
    pid = await cluster.shard_server_pid("n1")
    key = cluster.local.keys.node("n1")
    lists: list[int] = []
    async with aclosing(cluster.local.changes(key)) as batches:
        await anext(batches)
        kill(pid)
        async with asyncio.timeout(SOONER_S):
            async for batch in batches:
                assert isinstance(batch, Changes)
                values = [event.kv.value for event in batch.events if event.kv is not None]
                lists += [len(decode(value, NodeRecord, key).servers) for value in values]
                if len(lists) == 2:
                    break
    assert lists == [0, 1]


async def test_node_that_is_declared_dead_and_lives_registers_anew_as_itself(
    cluster: Cluster,
) -> None:
    _, (node, _) = await leader_and_others(cluster)
    key = cluster.local.keys.node(node)
    before = await cluster.local.store.get(key)
    assert before is not None

    await revoke(cluster.local.store, before.lease)

    async with asyncio.timeout(SOONER_S):
        while (after := await cluster.local.store.get(key)) is None or after.lease == before.lease:
            await asyncio.sleep(0.01)
    # It may not have had its shard server yet.
    one, other = (
        msgspec.structs.replace(decode(item.value, NodeRecord, key), servers=())
        for item in (before, after)
    )
    assert one == other
    assert cluster.local.nodes[node].process.returncode is None


async def test_killed_node_is_removed_long_before_its_lease_and_a_frozen_one_is_not(
    cluster: Cluster,
) -> None:
    leader, (killed, frozen) = await leader_and_others(cluster)
    before = await cluster.local.store.get(cluster.local.keys.node(frozen))
    await watched(cluster, killed, by=leader)
    await watched(cluster, frozen, by=leader)
    victims, still = await pids(cluster, killed), await pids(cluster, frozen)
    for pid in still:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in victims:
            kill(pid)
        await removed(cluster, killed)

        assert re.search(f"node={killed} incarnation=.* is dead: ", cluster.log_of(leader))
        assert await cluster.local.store.get(cluster.local.keys.node(frozen)) == before
    finally:
        for pid in still:
            os.kill(pid, signal.SIGCONT)
    await cluster.get("/healthz", cluster.local.nodes[frozen].http)
    assert await cluster.local.store.get(cluster.local.keys.node(frozen)) == before
    assert await cluster.exit_code(killed) == -signal.SIGKILL


async def test_leader_and_another_killed_at_once_are_both_removed_and_the_third_leads(
    cluster: Cluster,
) -> None:
    await cluster.add_node("n4")
    leader, (second, third) = await leader_and_others(cluster)
    await watched(cluster, leader, by=third)
    await watched(cluster, second, by=third)
    victims = [*await pids(cluster, leader), *await pids(cluster, second)]

    for pid in victims:
        kill(pid)

    await removed(cluster, leader)
    await removed(cluster, second)
    assert await cluster.exit_code(leader) == await cluster.exit_code(second) == -signal.SIGKILL
    await cluster.until(lambda status: status.leader == third, f"{third} leads", SOONER_S)
