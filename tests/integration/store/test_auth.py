"""A user name and password, and a login that runs out while we work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, aclosing

import pytest
from aetcd import rpc
from grpc import aio

from elasticps.errors import StoreError, StoreUnavailable
from elasticps.store import Lease, Store, StoreConfig
from elasticps.store.watch import watch
from tests.integration.store.mirror import mirrored
from tests.support.etcd import SINGLE_TIMING, EtcdServer, started_server

AUTH = (*SINGLE_TIMING, "--auth-token=simple", "--auth-token-ttl=1", "--bcrypt-cost=4")


@pytest.fixture(scope="module")
def auth_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Users root (may all) and reader (may read /n/); a login lasts about a second."""
    with ExitStack() as stack:
        server = started_server(stack, tmp_path_factory.mktemp("auth-etcd"), flags=AUTH)
        asyncio.run(add_users(server.config()))
        yield server


async def add_users(config: StoreConfig) -> None:
    permission = rpc.Permission(permType=rpc.Permission.READ, key=b"/n/", range_end=b"/n0")
    async with Store(config) as store:
        for name, role in (("root", "root"), ("reader", "reader")):
            for method, request in (
                ("RoleAdd", rpc.AuthRoleAddRequest(name=role)),
                ("UserAdd", rpc.AuthUserAddRequest(name=name, password=f"{name}'s")),
                ("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=name, role=role)),
            ):
                await store.endpoints.call(
                    lambda link, method=method: getattr(link.auth, method), request
                )
        grant = rpc.AuthRoleGrantPermissionRequest(name="reader", perm=permission)
        await store.endpoints.call(lambda link: link.auth.RoleGrantPermission, grant)
        await store.endpoints.call(lambda link: link.auth.AuthEnable, rpc.AuthEnableRequest())


def login(server: EtcdServer, name: str) -> StoreConfig:
    return server.config(username=name, password=f"{name}'s")


async def login_runs_out(store: Store) -> None:
    """Wait until etcd has forgotten the store's login. Each look renews it, so look seldom."""
    metadata = (("token", store.endpoints._token),)
    while True:
        await asyncio.sleep(2)
        try:
            await store.endpoints._links[0].kv.Range(rpc.RangeRequest(key=b"/"), metadata=metadata)
        except aio.AioRpcError as error:
            if error.details() == "etcdserver: invalid auth token":
                return
            raise


async def test_calls_and_watches_log_in_again_when_the_login_has_run_out(
    auth_etcd: EtcdServer,
) -> None:
    config = login(auth_etcd, "root")
    async with Store(config) as calling, Store(config) as watching:
        first = await calling.put("/n/a", b"1")
        await watching.get("/n/a")
        await asyncio.gather(login_runs_out(calling), login_runs_out(watching))

        await asyncio.gather(*(calling.put(f"/n/{i}", b"2") for i in range(16)))
        async with aclosing(watch(watching, "/n/", first)) as batches:
            assert (await anext(batches)).events[0].revision == first


async def test_watch_and_lease_outlive_a_login_and_a_restart(auth_etcd: EtcdServer) -> None:
    async with (
        Store(login(auth_etcd, "root")) as store,
        mirrored(store, "/n/") as mirror,
        Lease.grant(store, 10) as lease,
    ):
        await store.put("/n/leased", b"", lease.id)
        await auth_etcd.restart()
        while True:
            try:
                last = await store.put("/n/a", b"after")
                break
            except StoreUnavailable:
                continue
        await mirror.until(lambda: mirror.revision >= last)
        lease.raise_if_lost()


async def test_what_a_user_may_not_do_is_an_error_in_etcds_words(auth_etcd: EtcdServer) -> None:
    async with Store(login(auth_etcd, "reader")) as store:
        await store.list("/n/")
        with pytest.raises(StoreError, match="permission denied"):
            await store.put("/n/a", b"")
        with pytest.raises(StoreError, match="permission denied"):
            await anext(watch(store, "/other/", 1))


@pytest.mark.parametrize("name", ["root", "nobody"])
async def test_a_wrong_password_or_user_is_refused(auth_etcd: EtcdServer, name: str) -> None:
    config = auth_etcd.config(username=name, password="wrong")
    async with Store(config) as store:
        with pytest.raises(StoreError, match="authentication failed") as caught:
            await store.get("/n/a")
        assert not isinstance(caught.value, StoreUnavailable)


async def test_no_login_where_one_is_needed_is_refused(auth_etcd: EtcdServer) -> None:
    async with Store(auth_etcd.config()) as store:
        with pytest.raises(StoreError, match="user name is empty"):
            await store.get("/n/a")


async def test_a_login_where_none_is_needed_is_refused(shared_etcd: EtcdServer) -> None:
    async with Store(login(shared_etcd, "root")) as store:
        with pytest.raises(StoreError, match="not enabled"):
            await store.get("/n/a")
