"""The self-check of a daemon, against real listeners that serve, hang, and are gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from aiohttp import web

from elasticps.daemon.self_check import SelfCheck
from elasticps.security.tls import NodeTls
from elasticps.wire.address import Address
from tests.support.nodes import Authority
from tests.support.processes import open_fds

LIMIT_S = 10.0


@pytest_asyncio.fixture
async def control(tmp_path: Path) -> AsyncIterator[Address]:
    path = tmp_path / "control.sock"
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    async with server:
        yield Address.unix(path)


@pytest_asyncio.fixture
async def api() -> AsyncIterator[str]:
    async def healthy(_: web.Request) -> web.Response:
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/healthz", healthy)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_daemon_that_answers_is_well(api: str, control: Address) -> None:
    async with SelfCheck(api, control) as check:
        before = open_fds()
        for _ in range(5):
            assert await check.fault(LIMIT_S) is None
        assert len(open_fds()) <= len(before) + 2


async def test_an_api_that_takes_connections_and_never_answers_is_a_fault(
    control: Address,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with SelfCheck(f"http://127.0.0.1:{silent.getsockname()[1]}", control) as check:
            assert await check.fault(0.2) == "the API did not answer within 0.2 s"


async def test_an_api_that_is_gone_is_a_fault(control: Address) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    async with SelfCheck(url, control) as check:
        assert str(await check.fault(LIMIT_S)).startswith("the API cannot be reached")


async def test_an_api_that_refuses_is_served_all_the_same(control: Address) -> None:
    runner = web.AppRunner(web.Application())  # answers 404 to all
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with SelfCheck(f"http://127.0.0.1:{runner.addresses[0][1]}", control) as check:
        assert await check.fault(LIMIT_S) is None
    await runner.cleanup()


async def test_an_api_with_certificates_is_asked_for_no_more_than_an_answer(
    control: Address, tmp_path: Path
) -> None:
    """Whom its certificate is for is its callers' to check: it may listen at 0.0.0.0."""
    tls = NodeTls(Authority(tmp_path / "certs").node("n1", "10.0.0.7"))
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server()).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    async with SelfCheck(url, control) as check:
        assert await check.fault(LIMIT_S) is None
    await runner.cleanup()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with SelfCheck(f"https://127.0.0.1:{silent.getsockname()[1]}", control) as check:
            assert await check.fault(0.2) == "the API did not answer within 0.2 s"


async def test_a_control_socket_that_was_removed_is_a_fault(api: str, control: Address) -> None:
    Path(control.path).unlink()
    async with SelfCheck(api, control) as check:
        fault = str(await check.fault(LIMIT_S))
    assert fault.startswith("the children's socket cannot be reached")
