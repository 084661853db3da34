"""Three members: the store goes on while one of them is dead or frozen."""

from __future__ import annotations

import asyncio

import pytest

from elasticps.errors import StoreUnavailable
from elasticps.store import Lease, Store
from tests.integration.store.mirror import Mirror, assert_exact, mirrored
from tests.support.etcd import EtcdCluster, EtcdServer


async def put_until(store: Store, mirror: Mirror, count: int) -> tuple[int, int]:
    """Put until the mirror has seen ``count`` events more; the last revision and the failures."""
    goal = len(mirror.seen) + count
    failures = 0
    revision = 0
    while len(mirror.seen) < goal:
        try:
            revision = await store.put(f"/n/{goal % 7}", b"%d" % goal)
        except StoreUnavailable:
            failures += 1
    return revision, failures


def current(cluster: EtcdCluster, store: Store) -> EtcdServer:
    target = store.endpoints._links[store.endpoints._current].target
    return next(member for member in cluster.members if member.endpoint.endswith(target))


async def test_puts_watch_and_lease_go_on_when_etcds_leader_is_killed(
    etcd_cluster: EtcdCluster,
) -> None:
    leader = await etcd_cluster.leader()
    async with (
        Store(etcd_cluster.config(first=leader)) as store,
        mirrored(store, "/n/") as mirror,
        Lease.grant(store, 6) as lease,
    ):
        await store.put("/leased", b"", lease.id)
        await put_until(store, mirror, 20)
        leader.kill()
        last, failures = await put_until(store, mirror, 50)
        assert failures < 10
        await mirror.until(lambda: mirror.revision >= last)
        await assert_exact(mirror, store, "/n/")
        assert len(mirror.snapshots) == 1

        renewed = asyncio.Event()
        lease._on_renewed = lambda _: renewed.set()
        await renewed.wait()
        lease.raise_if_lost()
        assert await store.get("/leased") is not None

        leader.start()
        await leader.ready()
        last, _ = await put_until(store, mirror, 20)
        await mirror.until(lambda: mirror.revision >= last)


async def test_puts_and_watch_leave_a_frozen_member(etcd_cluster: EtcdCluster) -> None:
    config = etcd_cluster.config(request_timeout_s=1.0)
    async with Store(config) as store, mirrored(store, "/n/") as mirror:
        await put_until(store, mirror, 20)
        frozen = current(etcd_cluster, store)
        frozen.pause()
        last, failures = await put_until(store, mirror, 100)
        assert failures < 10
        assert current(etcd_cluster, store) is not frozen
        await mirror.until(lambda: mirror.revision >= last)
        frozen.resume()
        last, _ = await put_until(store, mirror, 20)
        await mirror.until(lambda: mirror.revision >= last)
        await assert_exact(mirror, store, "/n/")
        assert len(mirror.snapshots) == 1


async def test_without_a_majority_calls_fail_and_work_again_with_it(
    etcd_cluster: EtcdCluster,
) -> None:
    config = etcd_cluster.config(request_timeout_s=1.0)
    async with Store(config) as store, mirrored(store, "/n/") as mirror:
        await put_until(store, mirror, 5)
        one, two, _ = etcd_cluster.members
        one.kill()
        two.kill()
        while True:
            with pytest.raises(StoreUnavailable) as caught:
                await store.put("/n/a", b"")
            if "no leader" in str(caught.value):
                break
        one.start()
        two.start()
        await one.ready()
        last, _ = await put_until(store, mirror, 5)
        await mirror.until(lambda: mirror.revision >= last)
        await assert_exact(mirror, store, "/n/")
