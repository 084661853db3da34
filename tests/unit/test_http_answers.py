"""What one daemon answers another one reads."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest
from aiohttp import web

from elasticps.core.ids import Generation, JobKey, JobName, NodeId, Round, WorkerId
from elasticps.daemon.http import app
from elasticps.daemon.http.answers import LocalStatus, LocalWorker
from elasticps.daemon.life import Life
from elasticps.wire.control_messages import Progress


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
        loads=(),
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


def test_a_worker_that_says_the_same_again_has_taken_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Life(
        uid="a.1",
        worker=WorkerId(1),
        job=JobKey(1),
        job_name=JobName("digits"),
        child="",
        block_bytes=1,
        audit=False,
    )
    said = Progress(round=Round(3), generation=Generation(1), rank=0, world=1, step_s=0.5)
    for now_s, progress, stepped_at in (
        (10.0, said, 10.0),
        (20.0, said, 10.0),
        (30.0, msgspec.structs.replace(said, round=Round(4)), 30.0),
        (40.0, msgspec.structs.replace(said, round=Round(4), step_s=0.6), 40.0),
    ):
        monkeypatch.setattr("elasticps.daemon.workers.time.monotonic", lambda now=now_s: now)
        life.progressed(progress)
        assert life.stepped_at == stepped_at
