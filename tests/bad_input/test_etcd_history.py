"""An etcd whose history goes back or is gone, and a cluster that a node may not join."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from elasticps.core.ids import BlockId, PlanEpoch
from elasticps.errors import StoreError, StoreRolledBack, UsageError, WatchCompacted
from elasticps.store import Store, watch_prefix
from elasticps.store.schema import check_format
from elasticps.store.watch import watch
from elasticps.testing.members import Blueprint
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB
from elasticps.wire.control_messages import PlanRow, PlanUpdate
from tests.integration.daemon.conftest import cluster
from tests.integration.daemon.mirror import mirrored
from tests.integration.daemon.test_registration import Member
from tests.support.etcd import EtcdServer, compact, etcd_server, shared_etcd, store
from tests.support.processes import until

__all__ = ["cluster", "etcd_server", "shared_etcd", "store"]

pytestmark = pytest.mark.bad_input

DEEP = b"[" * 100_000


async def test_an_epoch_that_goes_backwards_changes_no_replica() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, Blueprint())
        entry = rig.entries[BlockId(1)]
        (other,) = (name for name in rig.servers if name != entry.primary)
        server = rig.primary(BlockId(1))
        older = PlanEpoch(entry.epoch - 1)
        row = PlanRow(BlockId(1), other, (), (), older, True, older)
        for each in rig.servers.values():
            each.child.tell(PlanUpdate(job=JOB, rows=(row,)))
        await member.step(Blueprint().random(1))
        replication = server.parameter_block(BlockId(1)).replication
        assert (replication.epoch, replication.role.name) == (entry.epoch, "PRIMARY")
        assert rig.ledger.round == 1


async def test_an_etcd_whose_revisions_go_backwards_is_used_no_more(
    etcd_server: EtcdServer, tmp_path: Any
) -> None:
    async with Store(etcd_server.config()) as store:
        await store.put("/a", b"1")
        etcd_server.kill()
        etcd_server.back_up(tmp_path / "copy")
        await etcd_server.restart()
        await store.put("/a", b"2")
        await store.put("/a", b"3")
        etcd_server.kill()
        etcd_server.put_back(tmp_path / "copy")
        await etcd_server.restart()
        with pytest.raises(StoreRolledBack):
            await store.put("/b", b"")
        with pytest.raises(StoreRolledBack):
            await store.get("/a")


async def test_a_compacted_watch_raises_and_a_mirror_lists_again(store: Store) -> None:
    first = await store.put("/n/a", b"1")
    await store.put("/n/a", b"2")
    await compact(store, await store.put("/n/b", b"1"))
    with pytest.raises(WatchCompacted) as caught:
        await anext(watch(store, "/n/", first))
    assert caught.value.where == "/n/"
    assert caught.value.limit is not None
    async with aclosing(watch_prefix(store, "/n/")) as batches:
        listing = await anext(batches)
    assert {item.key: item.value for item in listing.items} == {"/n/a": b"2", "/n/b": b"1"}


async def test_of_two_nodes_with_one_id_the_second_is_refused(store: Store, tmp_path: Any) -> None:
    async with mirrored(store) as cluster:
        first, second = (Member(cluster, name, tmp_path) for name in ("one", "two"))
        async with first.living():
            await until(lambda: first.membership.lease)
            before = await store.get(cluster.keys.node("a"))
            async with second.living() as task:
                with pytest.raises(UsageError, match="taken by a living daemon") as caught:
                    await task
            assert (caught.value.field, second.membership.joined) == ("node", False)
            assert "--node" in str(caught.value.hint)
            assert await store.get(cluster.keys.node("a")) == before
            assert first.told == [True]


FORMATS = {
    "a newer format": b'{"format": 7, "new": true}',
    "no format": b"{}",
    "garbage": b"\0",
    "no UTF-8": b'{"format": "\xff"}',
    "100,000 deep": b'{"x": ' + DEEP,
}


@pytest.mark.parametrize("name", FORMATS)
async def test_a_cluster_of_another_format_is_not_joined(store: Store, name: str) -> None:
    async with mirrored(store) as cluster:
        await store.put(cluster.keys.meta, FORMATS[name])
        with pytest.raises(StoreError) as caught:
            await check_format(store, cluster.keys)
        assert caught.value.where == cluster.keys.meta
        found = await store.get(cluster.keys.meta)
        assert found is not None
        assert found.value == FORMATS[name]
