"""An answer of lines: it ends with its source, with its reader, or with the reader's token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from elasticps.daemon.http import line_stream
from elasticps.daemon.http.line_stream import write_lines
from elasticps.testing.waiting import eventually


class Served:
    """A daemon whose only answer is ``lines``, which end with ``ended``."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[bytes] = asyncio.Queue(10)
        self.ended = asyncio.Event()
        self.readers = 0
        self.url = ""

    async def _source(self) -> None:
        self.readers += 1
        try:
            await self.ended.wait()
        finally:
            self.readers -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        source = asyncio.create_task(self._source())
        await write_lines(request, response, self.lines, source)
        return response

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Served]:
        app = web.Application()
        app.router.add_get("/", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            yield self
        finally:
            self.ended.set()
            await runner.cleanup()


@asynccontextmanager
async def reading(served: Served) -> AsyncIterator[aiohttp.StreamReader]:
    async with aiohttp.ClientSession() as session, session.get(served.url) as answer:
        await served.lines.put(b"first\n")
        assert await answer.content.readline() == b"first\n"
        yield answer.content


@pytest.fixture(autouse=True)
def often_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_stream, "CHECK_S", 0.01)


async def test_all_lines_are_written_before_the_answer_ends() -> None:
    async with Served().serving() as served, reading(served) as content:
        for number in range(10):
            served.lines.put_nowait(b"%d\n" % number)
        served.ended.set()
        assert (await content.read()).split() == [b"%d" % number for number in range(10)]


async def test_a_reader_that_leaves_is_forgotten_though_no_line_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Served().serving() as served:
        async with reading(served):
            assert served.readers == 1
        await eventually(lambda: served.readers == 0)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_reader_that_leaves_while_lines_come_is_no_fault(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_stream, "CHECK_S", 60.0)
    async with Served().serving() as served:
        async with reading(served):
            pass
        while served.readers:
            await served.lines.put(b"another\n")
            await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_the_lines_end_when_the_readers_token_is_revoked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Served().serving() as served, reading(served) as content:
        monkeypatch.setattr(line_stream, "is_still_allowed", lambda request: False)
        with pytest.raises(aiohttp.ClientError):  # and not the end of the lines
            await content.read()
        await eventually(lambda: served.readers == 0)
