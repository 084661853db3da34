"""A lease is held only while both clocks agree: ours gives up first."""

from __future__ import annotations

import asyncio
import time

import pytest

from elasticps.errors import LeaseLost, UsageError
from elasticps.store import Lease, Store, revoke
from tests.support.etcd import EtcdServer


async def test_a_lease_outlives_its_ttl_while_it_is_kept(store: Store) -> None:
    deadlines: list[float] = []
    outlived = asyncio.Event()

    def renewed(deadline: float) -> None:
        deadlines.append(deadline)
        if deadline > first + 1:
            outlived.set()

    async with Lease.grant(store, 1, renewed) as lease:
        first = lease.deadline
        await store.put("/a", b"", lease.id)
        await outlived.wait()
        lease.raise_if_lost()
        assert lease.deadline == deadlines[-1]
        assert deadlines == sorted(deadlines)
        found = await store.get("/a")
        assert found is not None
        assert found.lease == lease.id


async def test_closing_a_lease_deletes_its_keys_and_ends_its_task(store: Store) -> None:
    before = asyncio.all_tasks()
    async with Lease.grant(store, 30) as lease:
        await store.put("/a", b"", lease.id)
    assert await store.get("/a") is None
    assert asyncio.all_tasks() == before
    with pytest.raises(LeaseLost):
        lease.raise_if_lost()
    await lease.aclose()


async def test_the_deadline_is_counted_from_before_the_request(store: Store) -> None:
    before = time.monotonic()
    lease = await Lease.acquire(store, 30)
    after = time.monotonic()
    assert before + lease.ttl_s <= lease.deadline <= after + lease.ttl_s
    await lease.aclose()


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_lease_is_lost_at_its_own_deadline_when_etcd_is_gone(
    etcd_server: EtcdServer, fault: str
) -> None:
    async with Store(etcd_server.config(request_timeout_s=0.5)) as store:
        lease = await Lease.acquire(store, 1)
        getattr(etcd_server, fault)()
        await lease.lost.wait()
        assert time.monotonic() >= lease.deadline - 0.01
        with pytest.raises(LeaseLost):
            lease.raise_if_lost()
        await lease.aclose()


async def test_a_lease_revoked_under_us_is_lost_before_its_deadline(store: Store) -> None:
    async with Lease.grant(store, 3) as lease:
        await revoke(store, lease.id)
        await lease.lost.wait()
        assert time.monotonic() < lease.deadline
        with pytest.raises(LeaseLost):
            lease.raise_if_lost()


async def test_revoking_a_lease_deletes_its_keys_and_says_whether_it_was_there(
    store: Store,
) -> None:
    async with Lease.grant(store, 30) as lease, Lease.grant(store, 30) as other:
        for key, owner in (("/a", lease), ("/b", lease), ("/c", other)):
            await store.put(key, b"", owner.id)
        assert await revoke(store, lease.id)
        assert [item.key for item in (await store.list("/")).items] == ["/c"]
        assert not await revoke(store, lease.id)


async def test_a_lease_survives_an_etcd_that_is_back_in_time(etcd_server: EtcdServer) -> None:
    renewed = asyncio.Event()
    async with (
        Store(etcd_server.config()) as store,
        Lease.grant(store, 4, lambda _: renewed.set()) as lease,
    ):
        await store.put("/a", b"", lease.id)
        await etcd_server.restart()
        renewed.clear()
        await renewed.wait()
        lease.raise_if_lost()
        assert await store.get("/a") is not None


async def test_a_lease_is_known_as_lost_even_by_a_loop_that_was_blocked(store: Store) -> None:
    async with Lease.grant(store, 1) as lease:
        time.sleep(lease.deadline - time.monotonic())
        with pytest.raises(LeaseLost):
            lease.raise_if_lost()
        await lease.lost.wait()


async def test_work_is_cancelled_when_the_lease_is_lost(store: Store) -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with Lease.grant(store, 3) as lease:
        await revoke(store, lease.id)
        with pytest.raises(LeaseLost):
            await lease.while_held(work())
        assert cancelled.is_set()


async def test_work_that_ends_or_fails_under_a_held_lease_is_passed_on(store: Store) -> None:
    async def succeed() -> int:
        return 7

    async def fail() -> None:
        raise KeyError("mine")

    async with Lease.grant(store, 30) as lease:
        assert await lease.while_held(succeed()) == 7
        with pytest.raises(KeyError, match="mine"):
            await lease.while_held(fail())


async def test_an_error_in_the_callback_loses_the_lease_and_is_raised_at_close(
    store: Store,
) -> None:
    def broken(_: float) -> None:
        raise KeyError("callback")

    lease = await Lease.acquire(store, 1, broken)
    await lease.lost.wait()
    with pytest.raises(KeyError, match="callback"):
        await lease.aclose()


async def test_a_lease_that_cannot_be_revoked_is_logged_not_raised(
    etcd_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Store(etcd_server.config(request_timeout_s=0.3)) as store:
        async with Lease.grant(store, 30):
            etcd_server.kill()
        assert "lease not revoked" in caplog.text


async def test_a_lease_of_no_time_is_refused(store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        await Lease.acquire(store, 0)
    assert caught.value.field == "ttl_s"
