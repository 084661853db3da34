"""Reads and writes against a real etcd."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import ExitStack
from pathlib import Path

import pytest
from aetcd import rpc

from elasticps.errors import (
    FenceLost,
    LeaseLost,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from elasticps.store import Compare, Delete, Fence, Get, KeyValue, Put, Store, StoreConfig
from tests.support.etcd import SINGLE_TIMING, EtcdServer, compact, free_ports, started_server

MIB = 1024 * 1024


async def test_a_key_is_read_as_it_was_written(store: Store) -> None:
    revision = await store.put("/a", b"\x00\xff")
    expected = KeyValue(
        key="/a", value=b"\x00\xff", create_revision=revision, mod_revision=revision, lease=0
    )
    assert await store.get("/a") == expected
    assert await store.get("/b") is None


async def test_delete_says_whether_there_was_a_key(store: Store) -> None:
    await store.put("/a", b"1")
    assert await store.delete("/a") is True
    assert await store.delete("/a") is False


async def test_a_prefix_is_listed_and_deleted_without_its_neighbours(store: Store) -> None:
    for key in ("/jobs/a/1", "/jobs/a/2", "/jobs/a", "/jobs/b/1"):
        await store.put(key, b"")
    listing = await store.list("/jobs/a/")
    assert [item.key for item in listing.items] == ["/jobs/a/1", "/jobs/a/2"]
    assert await store.delete_prefix("/jobs/a/") == 2
    assert [item.key for item in (await store.list("/jobs/")).items] == ["/jobs/a", "/jobs/b/1"]


async def test_a_long_listing_is_whole_and_of_one_revision_while_it_changes(store: Store) -> None:
    for first in range(0, 1200, 100):
        await store.txn((), [Put(f"/n/{i:04d}", b"old") for i in range(first, first + 100)])
    before = await store.put("/other", b"")

    async def change() -> None:
        while True:
            await store.put("/n/1199", b"new")
            await store.delete("/n/1198")

    async with asyncio.TaskGroup() as group:
        changing = group.create_task(change())
        listing = await store.list("/n/")
        changing.cancel()
    assert listing.revision >= before
    assert len(listing.items) in (1199, 1200)
    assert max(item.mod_revision for item in listing.items) <= listing.revision


async def test_a_listing_larger_than_any_default_message_limit_is_read(store: Store) -> None:
    value = bytes(MIB)
    for i in range(10):
        await store.put(f"/big/{i}", value)
    assert [len(item.value) for item in (await store.list("/big/")).items] == [MIB] * 10


async def test_a_listing_survives_a_compaction_of_its_revision(store: Store) -> None:
    for first in range(0, 1200, 100):
        await store.txn((), [Put(f"/n/{i:04d}", b"") for i in range(first, first + 100)])

    for _ in range(20):
        revision = await store.put("/n/0000", b"new")
        await store.put("/n/0000", b"newer")
        listing, _ = await asyncio.gather(store.list("/n/"), compact(store, revision))
        assert len(listing.items) == 1200
        await compact(store, listing.revision)


@pytest.mark.parametrize("size", [MIB + 1, 2 * MIB])
async def test_a_value_that_is_too_large_is_refused_before_it_is_sent(
    store: Store, size: int
) -> None:
    before = (await store.status()).revision
    with pytest.raises(StoreError) as caught:
        await store.put("/big", bytes(size))
    assert caught.value.limit == f"{MIB} bytes"
    assert caught.value.where == "/big"
    with pytest.raises(StoreError, match="too large"):
        await store.create("/big", bytes(size))
    assert (await store.status()).revision == before


async def test_a_transaction_beyond_etcds_limits_is_refused_with_the_limit(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        await store.txn((), [Put(f"/{i}", b"") for i in range(129)])
    assert caught.value.limit == "128 operations"
    with pytest.raises(StoreError) as caught:
        await store.txn((), [Put("/a", bytes(MIB)), Put("/b", bytes(MIB))])
    assert caught.value.limit == f"{1536 * 1024} bytes"


async def test_a_transaction_does_one_branch_or_the_other(store: Store) -> None:
    revision = await store.put("/a", b"1")
    then = (Put("/a", b"2"), Get("/a"), Delete("/b"))
    result = await store.txn([Compare.modified("/a", revision)], then, [Get("/a")])
    assert result.succeeded
    assert result.revision == revision + 1
    put, got, deleted = result.responses
    assert put is None
    assert isinstance(got, KeyValue)
    assert got.value == b"2"
    assert deleted == 0
    again = await store.txn([Compare.modified("/a", revision)], then, [Get("/a"), Get("/b")])
    assert not again.succeeded
    assert again.responses == (got, None)


async def test_a_key_is_written_only_where_another_is_still_the_same(store: Store) -> None:
    first = await store.put("/spec", b"")
    same = Compare.created("/spec", first)
    assert await store.create("/a", b"1", given=(same,))
    assert await store.put_given(Put("/b", b"1"), (same,))
    await store.delete("/spec")
    await store.put("/spec", b"")
    assert await store.create("/c", b"1", given=(same,)) is None
    assert await store.put_given(Put("/b", b"2"), (same,)) is None
    assert [item.value for item in (await store.list("/")).items] == [b"1", b"1", b""]


async def test_create_writes_an_absent_key_only(store: Store) -> None:
    revision = await store.create("/a", b"1")
    assert revision is not None
    assert await store.create("/a", b"1") is None
    found = await store.get("/a")
    assert found is not None
    assert found.create_revision == revision


async def test_replace_writes_only_what_nobody_has_changed(store: Store) -> None:
    first = await store.put("/a", b"1")
    second = await store.replace("/a", b"2", first)
    assert second == first + 1
    assert await store.replace("/a", b"3", first) is None
    assert await store.replace("/absent", b"3", first) is None
    found = await store.get("/a")
    assert found is not None
    assert found.value == b"2"


async def test_a_fenced_write_tells_a_lost_fence_from_a_conflict(store: Store) -> None:
    revision = await store.create("/leader", b"me")
    assert revision is not None
    fence = Fence("/leader", revision)
    written = await store.fenced(fence, [Put("/plan", b"1"), Delete("/old")])

    with pytest.raises(StoreError, match="changed meanwhile") as caught:
        await store.fenced(fence, [Put("/plan", b"2")], [Compare.modified("/plan", written - 1)])
    assert not isinstance(caught.value, FenceLost)
    assert caught.value.where == "/plan"

    await store.put("/leader", b"still me")
    await store.fenced(fence, [Put("/plan", b"2")], [Compare.modified("/plan", written)])

    await store.delete("/leader")
    with pytest.raises(FenceLost):
        await store.fenced(fence, [Put("/plan", b"3")])
    await store.create("/leader", b"you")
    with pytest.raises(FenceLost):
        await store.fenced(fence, [Put("/plan", b"3")], [Compare.modified("/plan", 1)])
    found = await store.get("/plan")
    assert found is not None
    assert found.value == b"2"


async def test_a_write_under_an_unknown_lease_is_a_lost_lease(store: Store) -> None:
    with pytest.raises(LeaseLost):
        await store.put("/a", b"", lease=12345)
    with pytest.raises(LeaseLost):
        await store.create("/a", b"", lease=12345)


async def test_an_empty_key_or_prefix_is_refused(store: Store) -> None:
    with pytest.raises(UsageError):
        await store.put("", b"")
    with pytest.raises(UsageError):
        await store.delete_prefix("")


async def test_a_key_that_is_no_text_is_named_and_hides_no_other(store: Store) -> None:
    await store.endpoints.call(lambda link: link.kv.Put, rpc.PutRequest(key=b"/n/\xff"))
    await store.put("/n/a", b"")
    listing = await store.list("/n/")
    assert [item.key for item in listing.items] == ["/n/a", "/n/\\xff"]


async def test_status_tells_version_leader_and_size(store: Store) -> None:
    revision = await store.put("/a", b"")
    status = await store.status()
    assert status.version.startswith("3.")
    assert status.leader != 0
    assert status.revision == revision
    assert status.db_size > 0


async def test_no_endpoint_at_all_is_unavailable_and_says_why() -> None:
    (port,) = free_ports(1)
    config = StoreConfig(endpoints=(f"127.0.0.1:{port}",), request_timeout_s=0.3)
    async with Store(config) as store:
        with pytest.raises(StoreUnavailable, match="onnect") as caught:
            await store.put("/a", b"")
    assert caught.value.where == f"127.0.0.1:{port}"


async def test_calls_go_to_the_endpoint_that_is_there(shared_etcd: EtcdServer) -> None:
    (port,) = free_ports(1)
    config = StoreConfig(endpoints=(f"127.0.0.1:{port}", shared_etcd.endpoint))
    async with Store(config) as store:
        for i in range(20):
            await store.put("/a", b"%d" % i)


async def test_a_cancelled_call_ends_at_once(etcd_server: EtcdServer) -> None:
    async with Store(etcd_server.config(request_timeout_s=60)) as store:
        await store.put("/a", b"")
        etcd_server.pause()
        putting = asyncio.create_task(store.put("/a", b""))
        await asyncio.wait({putting}, timeout=0.1)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        etcd_server.resume()
        await store.put("/a", b"")


async def test_calls_work_again_after_kill_and_restart(etcd_server: EtcdServer) -> None:
    async with Store(etcd_server.config(request_timeout_s=0.5)) as store:
        await store.put("/a", b"before")
        etcd_server.kill()
        with pytest.raises(StoreUnavailable):
            await store.put("/a", b"lost")
        await etcd_server.restart()
        found = await store.get("/a")
        assert found is not None
        assert found.value == b"before"
        await store.put("/a", b"after")


async def test_calls_fail_while_etcd_is_frozen_and_work_afterwards(etcd_server: EtcdServer) -> None:
    async with Store(etcd_server.config(request_timeout_s=0.3)) as store:
        await store.put("/a", b"before")
        etcd_server.pause()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.get("/a")
        etcd_server.resume()
        async with Store(etcd_server.config()) as patient:
            await patient.get("/a")
        found = await store.get("/a")
        assert found is not None


async def test_a_full_database_is_an_error_in_etcds_words(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = started_server(
            stack, tmp_path, flags=(*SINGLE_TIMING, f"--quota-backend-bytes={4 * MIB}")
        )
        async with Store(server.config()) as store:
            with pytest.raises(StoreError, match="space exceeded") as caught:
                await fill(store)
            assert not isinstance(caught.value, StoreUnavailable)
            assert await store.get("/0") is not None


async def fill(store: Store) -> None:
    """Write until etcd refuses. It learns its own size at each commit only: no fixed number."""
    for i in itertools.count():
        await store.put(f"/{i}", bytes(MIB))
