"""How a daemon decides to leave, on a real etcd."""

from __future__ import annotations

import asyncio

import pytest

from elasticps.core.ids import NodeId
from elasticps.core.plan import Entry, encode_part
from elasticps.core.records import DrainRecord, JobSpec, NodeRecord, decode, encode
from elasticps.daemon.departure import RESTART, Departure
from elasticps.store import Store
from tests.integration.daemon.mirror import Mirrored, mirrored
from tests.support.etcd import EtcdServer
from tests.support.processes import until

NODE = NodeId("a")


def departure(cluster: Mirrored, drain_timeout_s: float = 3600.0) -> Departure:
    return Departure(
        cluster.store,
        cluster.view,
        cluster.changed,
        NODE,
        drain_timeout_s,
        lambda: cluster.view.holds_nothing(NODE),
    )


async def leads_a_block(cluster: Mirrored, server: str = "a/1") -> None:
    """A job of one block, which ``server`` leads."""
    spec = JobSpec(name="job", argv=("train.py",), cwd="/")
    await cluster.store.put(cluster.keys.job_spec("job"), encode(spec))
    part = encode_part([Entry(block=0, primary=server)])
    await cluster.store.put(cluster.keys.plan_part("job", 0), part)
    await cluster.until(lambda: cluster.view.holds_nothing(NODE) == (server != "a/1"))


async def drain_mark(cluster: Mirrored) -> DrainRecord | None:
    key = cluster.keys.drain(NODE)
    found = await cluster.store.get(key)
    return None if found is None else decode(found.value, DrainRecord, key)


async def test_node_that_holds_nothing_leaves_at_the_first_word(cluster: Mirrored) -> None:
    leaving = departure(cluster)
    leaving.ask()
    assert await leaving.wait(lambda: True) == 0
    assert await drain_mark(cluster) is None


async def test_node_that_holds_blocks_leaves_when_they_are_elsewhere(cluster: Mirrored) -> None:
    await leads_a_block(cluster)
    leaving = departure(cluster)
    waiting = asyncio.create_task(leaving.wait(lambda: True))
    leaving.ask()
    await cluster.until(lambda: NODE in cluster.view.drains)
    assert not waiting.done()

    await leads_a_block(cluster, "b/1")

    assert await waiting == 0


async def test_node_that_is_to_restart_says_so_when_its_blocks_are_elsewhere(
    cluster: Mirrored,
) -> None:
    await leads_a_block(cluster)
    await cluster.store.put(cluster.keys.drain(NODE), encode(DrainRecord(restart=True)))
    leaving = departure(cluster)
    waiting = asyncio.create_task(leaving.wait(lambda: True))
    await cluster.until(lambda: NODE in cluster.view.drains)
    assert not waiting.done()
    await leads_a_block(cluster, "b/1")
    assert await waiting == RESTART
    await leaving.unmark()
    assert await drain_mark(cluster) is None


async def test_node_that_is_stopped_while_it_is_to_restart_stays_down(cluster: Mirrored) -> None:
    await leads_a_block(cluster)
    await cluster.store.put(cluster.keys.drain(NODE), encode(DrainRecord(restart=True)))
    await cluster.until(lambda: NODE in cluster.view.drains)
    leaving = departure(cluster)
    waiting = asyncio.create_task(leaving.wait(lambda: True))
    leaving.ask()
    await leads_a_block(cluster, "b/1")
    assert await waiting == 0


async def test_node_whose_registration_is_gone_still_waits_for_its_blocks(
    cluster: Mirrored,
) -> None:
    await leads_a_block(cluster)
    await cluster.store.put(cluster.keys.drain(NODE), encode(DrainRecord()))
    assert NODE not in cluster.view.nodes
    waiting = asyncio.create_task(departure(cluster).wait(lambda: True))
    await cluster.until(lambda: NODE in cluster.view.drains)
    assert not waiting.done()
    await leads_a_block(cluster, "b/1")
    assert await waiting == 0


async def test_node_leaves_with_its_blocks_when_time_is_up(cluster: Mirrored) -> None:
    await leads_a_block(cluster)
    leaving = departure(cluster, drain_timeout_s=0.2)
    leaving.ask()
    assert await leaving.wait(lambda: True) == 1


async def test_node_that_was_never_registered_leaves_the_others_mark_and_blocks_alone(
    cluster: Mirrored,
) -> None:
    await leads_a_block(cluster)  # another daemon's, under the same id
    leaving = departure(cluster)
    leaving.ask()
    assert await leaving.wait(lambda: False) == 0
    assert await drain_mark(cluster) is None


async def test_operators_mark_to_stay_outlives_a_drain_by_signal(cluster: Mirrored) -> None:
    await leads_a_block(cluster)
    await cluster.store.put(cluster.keys.drain(NODE), encode(DrainRecord(stay=True)))
    await cluster.until(lambda: NODE in cluster.view.drains)
    leaving = departure(cluster)
    waiting = asyncio.create_task(leaving.wait(lambda: True))
    leaving.ask()
    await leads_a_block(cluster, "b/1")
    assert await waiting == 0
    await leaving.unmark()
    assert await drain_mark(cluster) == DrainRecord(stay=True)


async def test_mark_to_stay_alone_lets_nobody_leave(cluster: Mirrored) -> None:
    await cluster.store.put(cluster.keys.drain(NODE), encode(DrainRecord(stay=True)))
    await cluster.until(lambda: NODE in cluster.view.drains)
    leaving = departure(cluster)
    waiting = asyncio.create_task(leaving.wait(lambda: True))
    await leads_a_block(cluster, "b/1")
    assert not waiting.done()
    leaving.ask()
    assert await waiting == 0


@pytest.mark.parametrize("registered", [True, False])
async def test_mark_is_taken_off_only_while_nobody_is_registered_under_the_id(
    cluster: Mirrored, registered: bool
) -> None:
    await cluster.store.put(cluster.keys.drain(NODE), encode(DrainRecord()))
    if registered:
        record = NodeRecord(node=NODE, incarnation="1", machine="", http="", version="")
        await cluster.store.put(cluster.keys.node(NODE), encode(record))
    await departure(cluster).unmark()
    assert await drain_mark(cluster) == (DrainRecord() if registered else None)


async def test_second_word_does_not_wait_for_an_etcd_that_is_silent(
    etcd_server: EtcdServer,
) -> None:
    async with Store(etcd_server.config()) as store, mirrored(store) as cluster:
        await leads_a_block(cluster)
        leaving = departure(cluster)
        waiting = asyncio.create_task(leaving.wait(lambda: True))
        etcd_server.pause()
        try:
            leaving.ask()
            leaving.ask()
            async with asyncio.timeout(store.endpoints.config.request_timeout_s / 2):
                assert await waiting == 1
        finally:
            etcd_server.resume()


async def test_drain_that_etcd_did_not_hear_of_is_told_again(
    etcd_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    config = etcd_server.config(request_timeout_s=0.3)
    async with Store(config) as store, mirrored(store) as cluster:
        await leads_a_block(cluster)
        leaving = departure(cluster)
        waiting = asyncio.create_task(leaving.wait(lambda: True))
        etcd_server.pause()
        leaving.ask()
        await until(lambda: "the drain waits for etcd" in caplog.text)
        assert not waiting.done()
        etcd_server.resume()

        await cluster.until(lambda: NODE in cluster.view.drains)

        await leads_a_block(cluster, "b/1")
        assert await waiting == 0
