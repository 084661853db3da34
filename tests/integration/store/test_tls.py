"""Mutual TLS with etcd, and no way around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from elasticps.errors import StoreUnavailable
from elasticps.store import Lease, Store, StoreConfig
from tests.integration.store.mirror import mirrored
from tests.support.certificates import Authority
from tests.support.etcd import SINGLE_TIMING, EtcdServer, started_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def tls_etcd(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdServer]:
    signed = authority.sign("server")
    flags = (
        *SINGLE_TIMING,
        f"--cert-file={signed.cert}",
        f"--key-file={signed.key}",
        f"--trusted-ca-file={authority.ca}",
        "--client-cert-auth",
    )
    with ExitStack() as stack:
        yield started_server(
            stack, tmp_path_factory.mktemp("tls-etcd"), flags=flags, scheme="https"
        )


async def test_calls_watch_and_lease_work_over_mutual_tls(
    tls_etcd: EtcdServer, authority: Authority
) -> None:
    client = authority.sign("client")
    config = tls_etcd.config(ca=authority.ca, cert=client.cert, key=client.key)
    async with (
        Store(config) as store,
        mirrored(store, "/n/") as mirror,
        Lease.grant(store, 30) as lease,
    ):
        await store.put("/n/a", b"1", lease.id)
        await mirror.until(lambda: "/n/a" in mirror.state)


async def test_a_server_of_another_authority_is_refused(
    tls_etcd: EtcdServer, authority: Authority, tmp_path: Path
) -> None:
    client = authority.sign("client")
    other = Authority(tmp_path / "other")
    config = tls_etcd.config(ca=other.ca, cert=client.cert, key=client.key, request_timeout_s=0.5)
    async with Store(config) as store:
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate.verify.failed"):
            await store.get("/a")


async def test_a_client_without_a_certificate_of_ours_is_refused(
    tls_etcd: EtcdServer, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other").sign("client")
    for certificate in ({}, {"cert": stranger.cert, "key": stranger.key}):
        config = tls_etcd.config(ca=authority.ca, request_timeout_s=0.5, **certificate)
        async with Store(config) as store:
            with pytest.raises(StoreUnavailable):
                await store.get("/a")


async def test_plaintext_to_a_tls_server_is_refused(tls_etcd: EtcdServer) -> None:
    config = StoreConfig(
        endpoints=(f"http://127.0.0.1:{tls_etcd.client_port}",), request_timeout_s=0.5
    )
    async with Store(config) as store:
        with pytest.raises(StoreUnavailable):
            await store.get("/a")


async def test_tls_to_a_plaintext_server_is_refused(
    shared_etcd: EtcdServer, authority: Authority
) -> None:
    config = StoreConfig(
        endpoints=(f"127.0.0.1:{shared_etcd.client_port}",),
        ca=authority.ca,
        request_timeout_s=0.5,
    )
    async with Store(config) as store:
        with pytest.raises(StoreUnavailable):
            await store.get("/a")
