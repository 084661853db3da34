"""An etcd that has lost what it acknowledged is found out at its first answer, and not obeyed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from elasticps.errors import LeaseLost, StoreRolledBack, StoreUnavailable
from elasticps.store import Delete, Election, Fence, Lease, Store, watch_prefix
from tests.integration.store.mirror import mirrored
from tests.support.etcd import SINGLE_TIMING, EtcdCluster, EtcdServer

Act = Callable[[Store], Awaitable[object]]


async def backed_up(server: EtcdServer, directory: Path) -> Path:
    """A copy of its data; it goes on."""
    copy = directory / "backup"
    await asyncio.to_thread(server.kill)
    server.back_up(copy)
    server.start()
    await server.ready()
    return copy


async def restore(server: EtcdServer, copy: Path) -> None:
    await asyncio.to_thread(server.kill)
    server.put_back(copy)
    server.start()
    await server.ready()


ACTS: list[Act] = [
    lambda store: store.get("/n/a"),
    lambda store: store.list("/n/"),
    lambda store: store.put("/n/a", b""),
    lambda store: store.delete("/n/a"),
    lambda store: store.create("/n/b", b""),
    lambda store: store.fenced(Fence("/n/a", 1), [Delete("/n/b")]),
    lambda store: Lease.acquire(store, 5),
]


@pytest.mark.parametrize("act", ACTS)
async def test_every_kind_of_answer_tells_that_a_backup_was_restored_and_nothing_is_asked_then(
    etcd_server: EtcdServer, tmp_path: Path, act: Act
) -> None:
    async with Store(etcd_server.config()) as store:
        before = await store.put("/n/a", b"before")
        copy = await backed_up(etcd_server, tmp_path)
        await without_outage(lambda: store.put("/n/a", b"after"))
        for _ in range(5):
            last = await store.put("/n/a", b"after")
        await restore(etcd_server, copy)

        with pytest.raises(StoreRolledBack) as found:
            await without_outage(lambda: act(store))

        assert "etcd's data is older than what this node has already seen" in found.value.what
        assert f" < {last})" in found.value.what
        assert "stop the daemons on all nodes" in (found.value.hint or "")
        assert str(await store.rolled_back()) == str(found.value)
        with pytest.raises(StoreRolledBack):
            await store.put("/n/later", b"")
        async with Store(etcd_server.config()) as other:
            assert await other.get("/n/later") is None
            assert (await other.status()).revision <= before + 1


async def test_a_watch_tells_that_a_backup_was_restored_and_gives_nothing_of_it(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    async with Store(etcd_server.config()) as store:
        await store.put("/n/a", b"before")
        copy = await backed_up(etcd_server, tmp_path)
        async with aclosing(watch_prefix(store, "/n/")) as batches:
            await anext(batches)
            for _ in range(5):
                await without_outage(lambda: store.put("/n/a", b"after"))
                await anext(batches)
            following = asyncio.ensure_future(anext(batches))
            await restore(etcd_server, copy)
            with pytest.raises(StoreRolledBack):
                await following


async def test_a_watch_on_an_etcd_that_began_anew_does_not_wait_for_its_revisions(
    etcd_server: EtcdServer,
) -> None:
    async with (
        Store(etcd_server.config()) as store,
        aclosing(watch_prefix(store, "/n/")) as batches,
    ):
        await anext(batches)
        for _ in range(5):
            await store.put("/n/a", b"1")
            await anext(batches)
        etcd_server.kill()
        shutil.rmtree(etcd_server.directory / "data")
        await etcd_server.restart()
        with pytest.raises(StoreRolledBack):
            await anext(batches)


async def test_a_lease_that_the_backup_knows_too_is_not_renewed_by_it(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    renewals: list[float] = []
    async with Store(etcd_server.config()) as store:
        lease = await Lease.acquire(store, 3, renewals.append)
        await store.put("/n/leased", b"", lease.id)
        copy = await backed_up(etcd_server, tmp_path)
        await without_outage(lambda: store.put("/n/a", b"after"))
        await store.put("/n/a", b"after")
        await restore(etcd_server, copy)
        told, deadline = len(renewals), lease.deadline

        await lease.lost.wait()

        assert (len(renewals), lease.deadline) == (told, deadline)
        with pytest.raises(LeaseLost):
            lease.raise_if_lost()
        await lease.aclose()
        async with Store(etcd_server.config()) as other:
            assert await other.get("/n/a") is None


async def test_a_candidate_does_not_win_by_a_restored_backup(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    async with Store(etcd_server.config()) as store:
        copy = await backed_up(etcd_server, tmp_path)
        await without_outage(lambda: store.get("/n/a"))
        lease = await Lease.acquire(store, 30)
        await store.put("/leader", b"another")
        campaign = asyncio.ensure_future(Election(store, "/leader").campaign(lease, b"me"))
        await asyncio.wait({campaign}, timeout=0.2)
        await restore(etcd_server, copy)
        with pytest.raises(StoreRolledBack):
            await campaign
        await lease.aclose()


async def test_another_etcd_in_the_place_of_the_first_is_found_out_though_it_is_ahead(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    async with Store(etcd_server.config()) as store:
        await store.put("/n/a", b"1")
        etcd_server.kill()
        ports = (etcd_server.client_port, etcd_server.peer_port, etcd_server.metrics_port)
        flags = (*SINGLE_TIMING, "--initial-cluster-token=another")
        with EtcdServer(tmp_path / "two", flags=flags, ports=ports) as second:
            await second.ready()
            async with Store(second.config()) as other:
                for _ in range(5):
                    await other.put("/n/a", b"2")
            with pytest.raises(StoreRolledBack, match="another etcd answers than before"):
                await without_outage(lambda: store.get("/n/a"))


async def test_a_member_that_lags_is_no_rollback(etcd_server: EtcdServer) -> None:
    async with (
        Store(etcd_server.config(request_timeout_s=0.3)) as store,
        Lease.grant(store, 30) as lease,
    ):
        history = store.endpoints.history
        heard = history.revision
        history.revision += 1  # as if another member had told of what this one has yet to hear
        with pytest.raises(StoreUnavailable, match="has not caught up"):
            await store.status()
        with pytest.raises(StoreUnavailable, match="has not caught up"):
            await lease._keepalive(0.3)
        assert not history.broken.is_set()
        history.revision = heard
        await store.status()
        await store.put("/n/a", b"")


async def test_answers_that_overtake_each_other_and_members_in_turn_are_no_rollback(
    etcd_cluster: EtcdCluster,
) -> None:
    async with (
        Store(etcd_cluster.config()) as store,
        Lease.grant(store, 3) as lease,
        mirrored(store, "/n/") as mirror,
    ):

        async def work(worker: int) -> int:
            for step in range(60):
                last = await store.put(f"/n/{worker}", b"%d" % step)
                await store.get(f"/n/{worker}")
                await store.status()
                if step % 5 == 0:
                    store.endpoints.leave(store.endpoints._links[store.endpoints._current])
            return last

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work(worker)) for worker in range(8)]
        last = max(worker.result() for worker in workers)
        await mirror.until(lambda: mirror.revision >= last)
        lease.raise_if_lost()
        assert not store.endpoints.history.broken.is_set()
        assert store.endpoints.history.revision >= last


async def without_outage(act: Callable[[], Awaitable[object]]) -> object:
    """Do it again while etcd, which has just been started, does not answer."""
    while True:
        try:
            return await act()
        except StoreUnavailable:
            continue
