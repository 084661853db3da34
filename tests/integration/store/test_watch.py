"""Watches lose nothing and repeat nothing. The measure is etcd's own history, read afterwards."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from elasticps.errors import StoreError, StoreUnavailable, WatchCompacted
from elasticps.store import Changes, Delete, Put, Snapshot, Store, StoreConfig, watch_prefix
from elasticps.store.watch import watch
from tests.integration.store.mirror import assert_exact, mirrored
from tests.support.etcd import EtcdServer, compact, first_endpoint_answers
from tests.support.proxy import Proxy


async def test_a_watch_begins_with_the_state_and_goes_on_with_every_change(store: Store) -> None:
    await store.put("/n/a", b"1")
    await store.put("/other", b"")
    async with mirrored(store, "/n/") as mirror:
        assert [item.key for item in mirror.snapshots[0].items] == ["/n/a"]
        await store.put("/n/b", b"2")
        await store.put("/other", b"")
        last = await store.put("/n/b", b"3")
        await store.delete("/n/a")
        await mirror.until(lambda: "/n/a" not in mirror.state)
        assert mirror.state["/n/b"].value == b"3"
        assert mirror.seen == [(last - 2, "/n/b"), (last, "/n/b"), (last + 1, "/n/a")]


async def test_no_event_falls_between_snapshot_and_changes(store: Store) -> None:
    async def write() -> None:
        for i in range(600):
            await store.put("/n/counter", b"%d" % i)

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        while not writing.done():
            async with mirrored(store, "/n/") as mirror:
                first = mirror.snapshots[0].revision
                await mirror.until(lambda: len(mirror.seen) >= 5 or writing.done())
            revisions = [revision for revision, _ in mirror.seen]
            assert revisions == list(range(first + 1, first + 1 + len(revisions)))


async def test_a_transaction_is_delivered_whole_even_where_etcd_fragments(store: Store) -> None:
    first = (await store.status()).revision + 1
    for round_ in range(6):
        await store.txn((), [Put(f"/n/{i}", bytes([round_]) * 20_000) for i in range(60)])
    revisions: list[int] = []
    async with aclosing(watch(store, "/n/", first)) as batches:
        async for changes in batches:
            keys: dict[int, int] = {}
            for event in changes.events:
                keys[event.revision] = keys.get(event.revision, 0) + 1
            assert set(keys.values()) == {60}
            assert changes.revision == max(keys)
            revisions += keys
            if len(revisions) == 6:
                break
    assert revisions == list(range(first, first + 6))


async def test_put_and_delete_of_one_transaction_come_together(store: Store) -> None:
    await store.put("/n/a", b"")
    async with mirrored(store, "/n/") as mirror:
        await store.txn((), [Delete("/n/a"), Put("/n/b", b"")])
        await mirror.until(lambda: "/n/b" in mirror.state)
        (changes,) = mirror.batches[1:]
        assert isinstance(changes, Changes)
        assert {event.key: event.kv is None for event in changes.events} == {
            "/n/a": True,
            "/n/b": False,
        }


async def test_watch_resumes_after_kill_without_losing_or_repeating_an_event(
    etcd_server: EtcdServer,
) -> None:
    async with Store(etcd_server.config()) as store, mirrored(store, "/n/") as mirror:
        stop = asyncio.Event()

        async def write() -> int:
            i = 0
            while not stop.is_set():
                i += 1
                try:
                    await store.put(f"/n/{i % 50}", b"%d" % i)
                except StoreUnavailable:
                    continue
            return await store.put("/n/last", b"")

        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write()) for _ in range(4)]
            for _ in range(2):
                count = len(mirror.seen) + 200
                await mirror.until(lambda: len(mirror.seen) >= count)  # noqa: B023
                await etcd_server.restart()
            count = len(mirror.seen) + 200
            await mirror.until(lambda: len(mirror.seen) >= count)
            stop.set()
        last = max(writer.result() for writer in writers)
        await mirror.until(lambda: mirror.revision >= last)
        await assert_exact(mirror, store, "/n/")
        assert len(mirror.snapshots) == 1


async def test_a_catch_up_of_4000_events_cut_by_kill_is_whole(etcd_server: EtcdServer) -> None:
    async with Store(etcd_server.config()) as store:
        first = (await store.status()).revision + 1

        async def write(writer: int) -> None:
            for i in range(125):
                await store.put(f"/n/{writer}", b"%d" % i)

        async with asyncio.TaskGroup() as group:
            for writer in range(32):
                group.create_task(write(writer))
        seen: list[int] = []
        killed_at = 0
        async with aclosing(watch(store, "/n/", first)) as batches:
            async for changes in batches:
                seen += [event.revision for event in changes.events]
                if not killed_at:
                    killed_at = len(seen)
                    etcd_server.kill()
                    etcd_server.start()
                if len(seen) >= 4000:
                    break
        assert 0 < killed_at < 4000
        assert seen == list(range(first, first + 4000))


async def test_a_watch_goes_on_after_etcd_was_frozen_for_5_seconds(
    etcd_server: EtcdServer,
) -> None:
    config = etcd_server.config(request_timeout_s=1.0)
    async with Store(config) as store, mirrored(store, "/n/") as mirror:
        await store.put("/n/a", b"before")
        etcd_server.pause()
        thaw = time.monotonic() + 5
        failures = 0
        while time.monotonic() < thaw:
            with pytest.raises(StoreUnavailable):
                await store.put("/n/a", b"meanwhile")
            failures += 1
        etcd_server.resume()
        while True:
            try:
                last = await store.put("/n/a", b"after")
                break
            except StoreUnavailable:
                continue
        await mirror.until(lambda: mirror.revision >= last)
        assert failures > 0
        await assert_exact(mirror, store, "/n/")


async def test_a_watch_leaves_an_endpoint_that_went_silent(
    shared_etcd: EtcdServer, store: Store
) -> None:
    async with Proxy(shared_etcd.client_port) as proxy:
        endpoints = (proxy.endpoint, shared_etcd.endpoint)
        config = StoreConfig(endpoints=endpoints, request_timeout_s=0.5)
        async with Store(config) as client:
            await first_endpoint_answers(client)
            async with mirrored(client, "/n/") as mirror:
                first = await store.put("/n/a", b"1")
                await mirror.until(lambda: mirror.revision >= first)
                proxy.swallow_answers()
                last = await store.put("/n/a", b"2")
                await mirror.until(lambda: mirror.revision >= last)
                assert mirror.seen == [(first, "/n/a"), (last, "/n/a")]


async def test_a_watch_overtaken_by_a_compaction_gets_a_snapshot_that_replaces(
    shared_etcd: EtcdServer, store: Store
) -> None:
    await store.put("/n/stays", b"1")
    await store.put("/n/goes", b"1")
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(StoreConfig(endpoints=(proxy.endpoint,))) as client,
        mirrored(client, "/n/") as mirror,
    ):
        await proxy.cut()
        await store.delete("/n/goes")
        await store.put("/n/stays", b"2")
        await store.put("/n/comes", b"1")
        await compact(store, (await store.status()).revision)
        proxy.mend()
        await mirror.until(lambda: len(mirror.snapshots) == 2)
        assert {key: kv.value for key, kv in mirror.state.items()} == {
            "/n/stays": b"2",
            "/n/comes": b"1",
        }
        last = await store.put("/n/later", b"")
        await mirror.until(lambda: "/n/later" in mirror.state)
        assert mirror.seen == [(last, "/n/later")]


async def test_a_plain_watch_from_a_compacted_revision_raises(store: Store) -> None:
    first = await store.put("/n/a", b"1")
    await compact(store, await store.put("/n/a", b"2"))
    with pytest.raises(WatchCompacted):
        await anext(watch(store, "/n/", first))


async def test_a_quiet_watch_stays_on_its_stream_and_stays_alive(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("elasticps.store.watch._QUIET_S", 0.05)
    caplog.set_level("INFO", "elasticps.store.watch")
    async with mirrored(store, "/n/") as mirror:
        for i in range(20):
            await store.put("/other", b"")
            await asyncio.sleep(0.02)
            if i % 5 == 0:
                last = await store.put("/n/a", b"%d" % i)
        await mirror.until(lambda: mirror.revision >= last)
        await assert_exact(mirror, store, "/n/")
    assert caplog.records == []


async def test_a_watch_begun_while_etcd_is_away_begins_when_it_is_back(
    etcd_server: EtcdServer,
) -> None:
    async with Store(etcd_server.config(request_timeout_s=0.2)) as store:
        await store.put("/n/a", b"1")
        # Not killed, for the write must be there again: etcd 3.5.1 may lose it then.
        await asyncio.to_thread(etcd_server.terminate)
        batches = watch_prefix(store, "/n/")
        first = asyncio.ensure_future(anext(batches))
        await asyncio.wait({first}, timeout=0.5)
        assert not first.done()
        etcd_server.start()
        snapshot = await first
        assert isinstance(snapshot, Snapshot)
        assert [item.key for item in snapshot.items] == ["/n/a"]
        await batches.aclose()


async def test_a_watch_ends_with_its_scope_and_leaves_no_task(store: Store) -> None:
    before = asyncio.all_tasks()
    async with aclosing(watch_prefix(store, "/n/")) as batches:
        await anext(batches)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.wait({waiting}, timeout=0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    while asyncio.all_tasks() != before:
        await asyncio.sleep(0.01)


async def test_a_slow_reader_still_gets_everything(store: Store) -> None:
    async with aclosing(watch(store, "/n/", (await store.status()).revision + 1)) as batches:
        first = await store.put("/n/a", bytes(100_000))
        seen = [event.revision for event in (await anext(batches)).events]
        for _ in range(300):
            last = await store.put("/n/a", bytes(100_000))
        async for changes in batches:
            seen += [event.revision for event in changes.events]
            if changes.revision == last:
                break
    assert seen == list(range(first, last + 1))


async def test_a_refused_watch_raises_what_etcd_says(store: Store) -> None:
    with pytest.raises(StoreError):
        await anext(watch(store, "/n/", -5))
