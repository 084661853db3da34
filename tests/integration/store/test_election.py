"""One leader at a time, and no write by one who is not it any more."""

from __future__ import annotations

import asyncio

import pytest

from elasticps.errors import FenceLost, LeaseLost, UsageError
from elasticps.store import Election, Lease, Put, Store
from tests.integration.store.test_lease import revoke
from tests.support.etcd import EtcdServer, compact


async def test_the_first_candidate_wins_and_is_named(store: Store) -> None:
    election = Election(store, "/leader")
    assert await election.current() is None
    async with Lease.grant(store, 30) as lease:
        fence = await election.campaign(lease, b"me")
        leader = await election.current()
        assert leader is not None
        assert (leader.value, leader.create_revision) == (b"me", fence.create_revision)


async def test_takeover_when_the_leaders_lease_runs_out(store: Store) -> None:
    election = Election(store, "/leader")
    async with Lease.grant(store, 30) as mine:
        dead = await Lease.acquire(store, 1)
        first = await election.campaign(dead, b"dead")
        dead._keeping.cancel()
        second = await election.campaign(mine, b"me")
        assert second.create_revision > first.create_revision
        assert dead.lost.is_set()
        await dead.aclose()


async def test_takeover_at_once_when_the_leader_resigns(store: Store) -> None:
    election = Election(store, "/leader")
    async with Lease.grant(store, 30) as old, Lease.grant(store, 30) as new:
        fence = await election.campaign(old, b"old")
        campaign = asyncio.create_task(election.campaign(new, b"new"))
        await asyncio.wait({campaign}, timeout=0.2)
        assert not campaign.done()
        await election.resign(fence)
        second = await campaign
        await election.resign(fence)
        leader = await election.current()
        assert leader is not None
        assert (leader.value, leader.create_revision) == (b"new", second.create_revision)


async def test_a_deposed_leaders_fenced_write_is_refused(store: Store) -> None:
    election = Election(store, "/leader")
    async with Lease.grant(store, 30) as old, Lease.grant(store, 30) as new:
        first = await election.campaign(old, b"old")
        await store.fenced(first, [Put("/plan", b"old")])
        await revoke(store, old.id)
        second = await election.campaign(new, b"new")
        await store.fenced(second, [Put("/plan", b"new")])
        with pytest.raises(FenceLost):
            await store.fenced(first, [Put("/plan", b"old")])
        found = await store.get("/plan")
        assert found is not None
        assert found.value == b"new"


async def test_many_candidates_lead_one_after_the_other(store: Store) -> None:
    election = Election(store, "/leader")
    leading = 0
    terms: list[int] = []

    async def candidate(name: bytes) -> None:
        nonlocal leading
        async with Lease.grant(store, 30) as lease:
            fence = await election.campaign(lease, name)
            leading += 1
            assert leading == 1
            await store.fenced(fence, [Put("/plan", name)])
            terms.append(fence.create_revision)
            assert leading == 1
            leading -= 1
            await election.resign(fence)

    async with asyncio.TaskGroup() as group:
        for i in range(12):
            group.create_task(candidate(b"%d" % i))
    assert len(set(terms)) == 12
    assert terms == sorted(terms)


async def test_a_campaign_ends_when_its_own_lease_is_lost(store: Store) -> None:
    election = Election(store, "/leader")
    async with Lease.grant(store, 30) as leader, Lease.grant(store, 3) as waiting:
        await election.campaign(leader, b"leader")
        campaign = asyncio.create_task(election.campaign(waiting, b"waiting"))
        await asyncio.wait({campaign}, timeout=0.1)
        await revoke(store, waiting.id)
        with pytest.raises(LeaseLost):
            await campaign


async def test_a_campaign_waits_on_a_key_older_than_a_compaction(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "elasticps.store.election")
    election = Election(store, "/leader")
    async with Lease.grant(store, 30) as old, Lease.grant(store, 30) as new:
        fence = await election.campaign(old, b"old")
        await store.put("/other", b"")
        await compact(store, await store.put("/other", b""))
        campaign = asyncio.create_task(election.campaign(new, b"new"))
        await asyncio.wait({campaign}, timeout=0.1)
        await compact(store, await store.put("/other", b""))
        await election.resign(fence)
        assert (await campaign).create_revision > fence.create_revision
    assert caplog.records == []


async def test_a_campaign_goes_on_over_a_restart_of_etcd(etcd_server: EtcdServer) -> None:
    async with (
        Store(etcd_server.config()) as store,
        Lease.grant(store, 30) as old,
        Lease.grant(store, 30) as new,
    ):
        election = Election(store, "/leader")
        fence = await election.campaign(old, b"old")
        campaign = asyncio.create_task(election.campaign(new, b"new"))
        await asyncio.wait({campaign}, timeout=0.1)
        await etcd_server.restart()
        await election.resign(fence)
        assert (await campaign).create_revision > fence.create_revision


async def test_a_key_that_only_begins_with_the_elections_is_not_its_leader(store: Store) -> None:
    await store.put("/leader-of-others", b"")
    async with Lease.grant(store, 30) as old, Lease.grant(store, 30) as new:
        election = Election(store, "/leader")
        fence = await election.campaign(old, b"old")
        campaign = asyncio.create_task(election.campaign(new, b"new"))
        await store.delete("/leader-of-others")
        await asyncio.wait({campaign}, timeout=0.1)
        assert not campaign.done()
        await election.resign(fence)
        await campaign


async def test_one_lease_does_not_wait_for_itself_under_another_value(store: Store) -> None:
    async with Lease.grant(store, 30) as lease:
        election = Election(store, "/leader")
        await election.campaign(lease, b"me")
        with pytest.raises(UsageError):
            await election.campaign(lease, b"also me")
