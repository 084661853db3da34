"""How a daemon comes by its place in the cluster, and keeps it, on a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aetcd import rpc

from elasticps.core.ids import NodeId
from elasticps.core.records import NodeRecord, ServerRecord, decode, encode
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.leader import Leader
from elasticps.daemon.membership import Membership
from elasticps.errors import StoreError, UsageError
from elasticps.store import KeyValue, Lease, Store
from tests.integration.daemon.mirror import Mirrored, mirrored
from tests.support.etcd import EtcdServer, alarm
from tests.support.processes import until

NODE = NodeId("a")
TTL_S = 1


class Member:
    """One daemon's membership. ``server`` is what its registration lists."""

    def __init__(self, cluster: Mirrored, incarnation: str, directory: Path) -> None:
        self.server = "a/1"
        self.deadlines: list[float] = []
        self.told: list[bool] = []
        self.sees = asyncio.Event()
        self.sees.set()
        self._cluster = cluster
        self._incarnation = incarnation
        config = DaemonConfig(
            etcd=cluster.store.endpoints.config,
            cluster=cluster.keys.cluster,
            node=NODE,
            lease_ttl_s=TTL_S,
            state_dir=directory,
            log_dir=directory,
            runtime_dir=directory,
        )
        self.membership = Membership(
            config,
            cluster.store,
            cluster.keys,
            Leader(cluster.store, cluster.view, cluster.changed, config.lost_after_s),
            self._record,
            self._seen,
            self.deadlines.append,
            self._changed,
        )

    async def _record(self) -> NodeRecord:
        server = ServerRecord(server=self.server, tcp="tcp:127.0.0.1:1", unix="unix:/x")
        return NodeRecord(
            node=NODE,
            incarnation=self._incarnation,
            machine="",
            http="",
            version="",
            servers=(server,),
        )

    async def _seen(self, revision: int) -> None:
        await self.sees.wait()
        await self._cluster.until(lambda: self._cluster.view.revision >= revision)

    async def _changed(self, lease: Lease | None) -> None:
        self.told.append(lease is not None)

    @asynccontextmanager
    async def living(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.membership.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.fixture
def member(cluster: Mirrored, tmp_path: Path) -> Callable[[str], Member]:
    return lambda incarnation: Member(cluster, incarnation, tmp_path)


async def registration(cluster: Mirrored) -> tuple[KeyValue, NodeRecord] | None:
    key = cluster.keys.node(NODE)
    found = await cluster.store.get(key)
    return None if found is None else (found, decode(found.value, NodeRecord, key))


async def test_member_is_registered_leads_alone_and_leaves_nothing(
    cluster: Mirrored, member: Callable[[str], Member]
) -> None:
    only = member("one")
    async with only.living():
        await until(lambda: only.membership.leading)
        held = await registration(cluster)
        assert held is not None
        assert held[0].lease != 0
        assert held[1].incarnation == "one"
        await cluster.until(lambda: cluster.view.leader == NODE)
        assert only.deadlines
    assert only.told == [True, False]
    assert await registration(cluster) is None
    await cluster.until(lambda: cluster.view.leader is None)


async def test_server_is_told_of_the_lease_once_the_daemon_sees_what_was_planned_before_it(
    cluster: Mirrored, member: Callable[[str], Member]
) -> None:
    late = member("one")
    late.sees.clear()
    async with late.living():
        await cluster.until(lambda: NODE in cluster.view.nodes)
        held = await registration(cluster)
        assert held is not None
        lease = held[0].lease
        await asyncio.sleep(2 * TTL_S)  # it is renewed, and nobody is told
        assert late.deadlines == []
        late.sees.set()
        await until(lambda: late.deadlines)
        held = await registration(cluster)
        assert held is not None
        assert held[0].lease == lease


async def test_id_of_a_living_daemon_is_not_taken(
    cluster: Mirrored, member: Callable[[str], Member]
) -> None:
    first, second = member("one"), member("two")
    async with first.living():
        await until(lambda: first.membership.lease)
        before = await registration(cluster)
        async with second.living() as task:
            with pytest.raises(UsageError, match="taken by a living daemon") as refused:
                await task
        assert refused.value.field == "node"
        assert await registration(cluster) == before
        assert not second.membership.joined
        assert first.told == [True]


async def test_id_of_a_killed_daemon_is_taken_when_its_lease_has_run_out(
    cluster: Mirrored, member: Callable[[str], Member], store: Store
) -> None:
    dead = member("one")
    granted = await store.endpoints.call(
        lambda link: link.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=TTL_S)
    )
    await store.put(cluster.keys.node(NODE), encode(await dead._record()), granted.ID)

    following = member("two")
    async with following.living():
        await until(lambda: following.membership.lease, timeout_s=60)
        held = await registration(cluster)
        assert held is not None
        assert held[1].incarnation == "two"


async def test_place_that_holds_a_foreign_value_is_named_and_left_alone(
    cluster: Mirrored, member: Callable[[str], Member], store: Store
) -> None:
    key = cluster.keys.node(NODE)
    await store.put(key, b"\0 not ours")
    async with member("one").living() as task:
        with pytest.raises(StoreError, match="not a NodeRecord") as refused:
            await task
    assert refused.value.where == key
    found = await store.get(key)
    assert found is not None
    assert found.value == b"\0 not ours"


async def test_new_shard_server_is_written_under_the_same_lease(
    cluster: Mirrored, member: Callable[[str], Member]
) -> None:
    changing = member("one")
    async with changing.living():
        await until(lambda: changing.membership.lease)
        before = await registration(cluster)
        changing.server = "a/2"
        changing.membership.rewritten.set()
        await cluster.until(lambda: [s.server for s in cluster.view.servers] == ["a/2"])
        after = await registration(cluster)
        assert before is not None
        assert after is not None
        assert after[0].lease == before[0].lease
        assert changing.told == [True]


async def test_member_whose_lease_was_lost_registers_anew_as_itself(
    cluster: Mirrored, member: Callable[[str], Member], store: Store
) -> None:
    unlucky = member("one")
    async with unlucky.living():
        await until(lambda: unlucky.membership.lease)
        before = await registration(cluster)
        assert before is not None
        revoke = rpc.LeaseRevokeRequest(ID=before[0].lease)
        await store.endpoints.call(lambda link: link.lease.LeaseRevoke, revoke)

        await until(lambda: unlucky.told[-2:] == [False, True], timeout_s=60)

        after = await registration(cluster)
        assert after is not None
        assert after[1] == before[1]
        assert after[0].lease != before[0].lease
        await until(lambda: unlucky.membership.leading, timeout_s=60)


async def test_member_whose_registration_alone_was_removed_registers_anew(
    cluster: Mirrored, member: Callable[[str], Member], store: Store
) -> None:
    unlucky = member("one")
    async with unlucky.living():
        await until(lambda: unlucky.membership.lease)
        before = await registration(cluster)
        assert before is not None

        await store.delete(cluster.keys.node(NODE))

        await until(lambda: unlucky.told[-2:] == [False, True], timeout_s=60)
        after = await registration(cluster)
        assert after is not None
        assert after[1] == before[1]
        assert after[0].lease != before[0].lease


async def test_registration_that_was_overwritten_is_replaced_at_its_next_change(
    cluster: Mirrored, member: Callable[[str], Member], store: Store
) -> None:
    changing = member("one")
    async with changing.living():
        await until(lambda: changing.membership.lease)
        await store.put(cluster.keys.node(NODE), b"\0 not ours")
        changing.server = "a/2"
        changing.membership.rewritten.set()
        await cluster.until(lambda: [s.server for s in cluster.view.servers] == ["a/2"])
        held = await registration(cluster)
        assert held is not None
        assert changing.membership.lease is not None
        assert held[0].lease == changing.membership.lease.id
        assert changing.told == [True]


async def test_registered_member_stays_when_etcd_has_no_space_left(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    async with Store(etcd_server.config()) as store, mirrored(store) as cluster:
        member = Member(cluster, "one", tmp_path)
        async with member.living() as task:
            await until(lambda: member.membership.leading)
            await alarm(store, rpc.AlarmRequest.ACTIVATE)
            with pytest.raises(StoreError, match="database space exceeded"):
                await store.put("/full", b"")
            member.server = "a/2"
            member.membership.rewritten.set()
            renewals = len(member.deadlines)
            await until(lambda: len(member.deadlines) > renewals + 3, timeout_s=60)
            assert not task.done()
            assert member.told == [True]

            await alarm(store, rpc.AlarmRequest.DEACTIVATE)

            await cluster.until(lambda: [s.server for s in cluster.view.servers] == ["a/2"])
