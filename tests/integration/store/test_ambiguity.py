"""Requests that take effect while their answers are lost."""

from __future__ import annotations

import asyncio

import pytest

from elasticps.errors import StoreUnavailable
from elasticps.store import Election, Lease, Store, StoreConfig
from tests.support.etcd import EtcdServer, first_endpoint_answers
from tests.support.proxy import Proxy


def through(*endpoints: str) -> StoreConfig:
    return StoreConfig(endpoints=endpoints, request_timeout_s=0.5)


async def test_a_write_whose_answer_is_lost_is_not_sent_twice(
    shared_etcd: EtcdServer, store: Store
) -> None:
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(through(proxy.endpoint, shared_etcd.endpoint)) as client,
    ):
        before = await first_endpoint_answers(client)
        proxy.swallow_answers()
        with pytest.raises(StoreUnavailable):
            await client.put("/a", b"1")
        assert (await store.status()).revision == before + 1
        assert await client.put("/a", b"2") == before + 2


async def test_a_write_whose_connection_breaks_is_not_sent_twice(
    shared_etcd: EtcdServer, store: Store
) -> None:
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(through(proxy.endpoint, shared_etcd.endpoint)) as client,
    ):
        await first_endpoint_answers(client)
        proxy.swallow_answers()
        putting = asyncio.create_task(client.put("/a", b"1"))
        while (found := await store.get("/a")) is None:
            await asyncio.sleep(0.001)
        await proxy.cut()
        with pytest.raises(StoreUnavailable):
            await putting
        assert await store.get("/a") == found


async def test_a_read_whose_answer_is_lost_is_asked_elsewhere(
    shared_etcd: EtcdServer, store: Store
) -> None:
    await store.put("/a", b"1")
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(through(proxy.endpoint, shared_etcd.endpoint)) as client,
    ):
        await first_endpoint_answers(client)
        proxy.swallow_answers()
        found = await client.get("/a")
        assert found is not None
        assert found.value == b"1"


async def test_a_create_whose_answer_is_lost_recognises_itself(
    shared_etcd: EtcdServer, store: Store
) -> None:
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(through(proxy.endpoint, shared_etcd.endpoint)) as client,
    ):
        before = await first_endpoint_answers(client)
        proxy.swallow_answers()
        assert await client.create("/a", b"mine") == before + 1
    assert await store.create("/a", b"mine") is None


async def test_a_create_whose_answer_is_lost_does_not_take_anothers_key_for_its_own(
    shared_etcd: EtcdServer, store: Store
) -> None:
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(through(proxy.endpoint, shared_etcd.endpoint)) as client,
        Lease.grant(store, 5) as lease,
    ):
        await store.create("/value", b"another's")
        await store.create("/lease", b"mine", lease.id)
        for key in ("/value", "/lease"):
            client.endpoints.leave(client.endpoints._links[1])
            await first_endpoint_answers(client)
            proxy.swallow_answers()
            assert await client.create(key, b"mine") is None
            await proxy.answer_again()


async def test_a_replace_whose_answer_is_lost_recognises_itself(
    shared_etcd: EtcdServer, store: Store
) -> None:
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(through(proxy.endpoint, shared_etcd.endpoint)) as client,
    ):
        first = await store.put("/a", b"1")
        await first_endpoint_answers(client)
        proxy.swallow_answers()
        assert await client.replace("/a", b"2", first) == first + 1


async def test_a_campaign_recognises_its_own_earlier_win(
    shared_etcd: EtcdServer, store: Store
) -> None:
    async with (
        Proxy(shared_etcd.client_port) as proxy,
        Store(through(proxy.endpoint)) as client,
        Lease.grant(store, 10) as lease,
    ):
        await client.get("/leader")
        proxy.swallow_answers()
        campaign = asyncio.create_task(Election(client, "/leader").campaign(lease, b"me"))
        while (leader := await store.get("/leader")) is None:
            await asyncio.sleep(0.01)
        await proxy.answer_again()
        fence = await campaign
        assert fence.create_revision == leader.create_revision
        assert leader.lease == lease.id

        again = await Election(store, "/leader").campaign(lease, b"me")
        assert again == fence
