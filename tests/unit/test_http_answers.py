"""What one daemon answers another one reads."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest
from aiohttp import web

from elasticps.core.ids import Generation, NodeId, Round
from elasticps.daemon.http import app
from elasticps.daemon.http.answers import LocalStatus, LocalWorker
from elasticps.wire.messages import Progress


def test_a_node_is_heard_though_its_workers_loss_is_no_number() -> None:
    progress = Progress(
        round=Round(3),
        generation=Generation(1),
        rank=0,
        world=1,
        metrics={"loss": math.nan, "norm": math.inf, "rate": 0.5},
    )
    told = LocalStatus(
        node=NodeId("a"),
        foreign_values=0,
        load=None,
        children=(),
        workers=(LocalWorker(uid="a.1", progress=progress),),
    )
    heard = msgspec.json.decode(msgspec.json.encode(told), type=LocalStatus)
    assert heard.workers[0].progress is not None
    assert heard.workers[0].progress.metrics == {"loss": None, "norm": None, "rate": 0.5}


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Endless: "])
async def test_who_never_ends_its_headers_is_not_heard_for_ever(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(app, "HEADERS_S", 0.05)
    runner = app.bounded(web.Application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(begun)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
    finally:
        await runner.cleanup()
