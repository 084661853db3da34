"""The stream's producer and its readers, over real sockets: bounded, shared, and soon over."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from elasticps.cli.frames import Frame, FrameParser
from elasticps.core.ids import NodeId
from elasticps.daemon.http import stream as stream_module
from elasticps.daemon.http.body import read_strictly
from elasticps.daemon.http.stream import Broadcast, Reader, StreamRoutes, TooManyReaders, Why
from elasticps.daemon.timeline import Timeline
from elasticps.testing.waiting import eventually
from tests.support.contents import Contents

PADDING = "x" * 20_000


class Served(Contents):
    """A timeline behind an API that has the stream alone. ``asked``: how often for the status."""

    def __init__(self, **limits: int) -> None:
        super().__init__()
        self.timeline = Timeline(self.view)
        self.broadcast = Broadcast(self.timeline, self._status, **limits)
        self.asked = 0
        self.status: object = {"cluster": "lab"}
        self.url = ""
        self.put(self.keys.leader, b"a")
        self.timeline.look()

    async def _status(self) -> bytes:
        self.asked += 1
        return json.dumps(self.status).encode()

    def happens(self, node: str, zone: str = "") -> str:
        """A node of this name joins; the id of that event, which tells its zone."""
        self.node(node, zone=zone)
        self.timeline.look()
        return self.timeline.newest

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Served]:
        @web.middleware
        async def refused(request: web.Request, handler: object) -> web.StreamResponse:
            try:
                return await handler(request)  # type: ignore[no-any-return, operator]
            except TooManyReaders as error:
                return web.json_response({"hint": error.hint}, status=503)

        app = web.Application(middlewares=[refused, read_strictly])
        routes = StreamRoutes(self.timeline, self.broadcast)
        app.router.add_routes(routes.routes())
        app.cleanup_ctx.append(routes.life)
        app.on_shutdown.append(routes.stop)
        runner = web.AppRunner(app, shutdown_timeout=60.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            async with asyncio.timeout(30.0):  # half of what it may wait for open streams
                await runner.cleanup()

    @asynccontextmanager
    async def reading(self, after: str | None = None, job: str = "") -> AsyncIterator[Reading]:
        headers = {"Last-Event-ID": after} if after else {}
        query = {"job": job} if job else {}
        async with (
            aiohttp.ClientSession(self.url) as session,
            session.get("/api/v1/stream", headers=headers, params=query) as response,
        ):
            reading = Reading(response)
            await reading.until(lambda: reading.parser.last_id)
            yield reading


class Reading:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.parser = FrameParser()
        self.frames: list[Frame] = []

    @property
    def nodes(self) -> list[str]:
        events = (json.loads(each.data) for each in self.frames if each.event == "event")
        return [event["node"] for event in events]

    async def until(self, found: object) -> None:
        async with asyncio.timeout(30.0):
            while not found():  # type: ignore[operator]
                chunk = await self.response.content.readany()
                assert chunk, "the stream has ended"
                self.frames += self.parser.feed(chunk)

    async def ends(self) -> None:
        async with asyncio.timeout(30.0):
            while chunk := await self.response.content.readany():
                self.frames += self.parser.feed(chunk)


async def test_every_reader_gets_each_event_once_and_the_status_is_asked_for_once_for_all() -> None:
    async with Served().serving() as api, api.reading() as one, api.reading() as two:
        for name in "abc":
            api.happens(name)
        await one.until(lambda: len(one.nodes) == 3 and "status" in _kinds(one))
        await two.until(lambda: len(two.nodes) == 3 and "status" in _kinds(two))
        assert one.nodes == two.nodes == ["a", "b", "c"]
        assert api.asked <= 2


def _kinds(reading: Reading) -> list[str]:
    return [frame.event for frame in reading.frames]


async def test_status_that_does_not_change_is_not_repeated() -> None:
    async with Served().serving() as api, api.reading() as reading:
        await reading.until(lambda: "status" in _kinds(reading))
        await eventually(lambda: api.asked >= 3)
        api.status = {"cluster": "other"}
        await reading.until(lambda: _kinds(reading).count("status") == 2)
        assert [json.loads(each.data)["cluster"] for each in reading.frames] == ["lab", "other"]


async def test_nobody_is_asked_while_nobody_reads() -> None:
    async with Served().serving() as api:
        async with api.reading() as reading:
            await reading.until(lambda: "status" in _kinds(reading))
        await eventually(lambda: not api.broadcast.readers)
        await eventually(lambda: not api.broadcast._wanted.is_set())
        asked = api.asked
        await asyncio.sleep(3 * stream_module.STATUS_PERIOD_S)
        assert api.asked == asked


async def test_reader_that_comes_back_misses_nothing_and_gets_nothing_twice() -> None:
    async with Served().serving() as api:
        async with api.reading() as reading:
            api.happens("a")
            await reading.until(lambda: reading.nodes)
            seen = reading.parser.last_id
        api.happens("b")
        api.happens("c")
        async with api.reading(after=seen) as again:
            api.happens("d")
            await again.until(lambda: len(again.nodes) == 3)
            assert again.nodes == ["b", "c", "d"]
            assert "missed" not in _kinds(again)


async def test_stream_of_one_job_has_the_events_of_that_job_alone() -> None:
    async with Served().serving() as api, api.reading(job="wanted") as reading:
        api.happens("a")
        for name in ("other", "wanted"):
            api.job(name)
            api.timeline.look()
        await reading.until(lambda: "event" in _kinds(reading))
        (event,) = [json.loads(each.data) for each in reading.frames if each.event == "event"]
        assert event["job"] == "wanted"


@pytest.mark.parametrize("after", ["0123abcd-7", "never heard of"])
async def test_unknown_id_gives_all_that_is_kept_and_says_so(after: str) -> None:
    async with Served().serving() as api:
        api.happens("a")
        newest = api.happens("b")
        async with api.reading(after=after) as reading:
            await reading.until(lambda: len(reading.nodes) == 2)
            assert _kinds(reading)[0] == "missed"
            assert reading.nodes == ["a", "b"]
            assert reading.parser.last_id == newest


async def test_reader_that_does_not_read_is_dropped_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "WRITE_TIMEOUT_S", 2.0)
    async with Served().serving() as api, api.reading() as other:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            host, port = api.url.removeprefix("http://").split(":")
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, (host, int(port)))
            await loop.sock_sendall(deaf, b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(lambda: api.broadcast.readers == 2)
            names: list[str] = []
            async with asyncio.timeout(60.0):
                while api.broadcast.readers == 2:
                    names.append(f"n{len(names)}")
                    api.happens(names[-1], zone=PADDING)
                    await other.until(lambda: len(other.nodes) == len(names))
        api.happens("after")
        await other.until(lambda: other.nodes[-1] == "after")
        assert other.nodes == [*names, "after"]


async def test_events_that_wait_for_a_reader_are_bounded() -> None:
    api, reader = Served(), Reader(None, pending=3)
    api.broadcast.join(reader)
    api.timeline.subscribe(api.broadcast._happened)
    for name in "abc":
        api.happens(name)
    assert reader.ended is None
    api.happens("d")
    assert reader.ended is Why.BEHIND
    assert await reader.frame(0.0) is None


async def test_more_readers_than_the_limit_are_refused_with_a_hint_until_one_leaves() -> None:
    async with Served(max_readers=2).serving() as api, api.reading():
        async with (
            api.reading(),
            aiohttp.ClientSession(api.url) as session,
            session.get("/api/v1/stream") as refused,
        ):
            assert refused.status == 503
            assert "another daemon" in (await refused.json())["hint"]
        await eventually(lambda: api.broadcast.readers == 1)
        async with api.reading():
            assert api.broadcast.readers == 2


async def test_readers_that_never_read_hold_no_place_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "elasticps")
    async with Served(max_readers=2).serving() as api:
        host, port = api.url.removeprefix("http://").split(":")
        deaf = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for _, writer in deaf:
            writer.write(b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: api.broadcast.readers == 2)
        monkeypatch.setattr(stream_module, "PLACE_S", 0.0)
        async with api.reading() as one, api.reading() as other:
            monkeypatch.setattr(stream_module, "PLACE_S", 60.0)
            api.happens("a")
            for reading in (one, other):
                await reading.until(lambda reading=reading: reading.nodes == ["a"])
            with pytest.raises(TooManyReaders):  # those came lately
                api.broadcast.join(Reader(None))
        await eventually(lambda: caplog.text.count(Why.DISPLACED.value) == 2)
        for _, writer in deaf:
            writer.close()


async def test_stream_that_has_nothing_to_say_says_that_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(stream_module, "CHECK_S", 0.01)
    async with Served().serving() as api, aiohttp.ClientSession(api.url) as session:
        async with session.get("/api/v1/stream") as response, asyncio.timeout(30.0):
            heard = b""
            while heard.count(b": keep-alive\n\n") < 2:
                heard += await response.content.readany()
        assert heard.startswith(b"retry: 2000\n")


async def test_server_that_stops_ends_its_streams_and_waits_for_none() -> None:
    served = Served()
    async with served.serving() as api:
        session = aiohttp.ClientSession(api.url)
        response = await session.get("/api/v1/stream")
        reading = Reading(response)
        await reading.until(lambda: "status" in _kinds(reading))
    await reading.ends()
    await session.close()
    assert served.broadcast.readers == 0
    with pytest.raises(TooManyReaders):
        served.broadcast.join(Reader(None))


async def test_picture_is_of_the_view_that_was_looked_at() -> None:
    api = Served()
    api.happens("a")
    assert set(api.timeline.picture.nodes) == {NodeId("a")}


def test_frames_come_out_the_same_however_the_bytes_are_cut() -> None:
    text = b": c\n\nretry: 1\nid: 7\n\nevent: status\r\ndata: {}\r\n\r\nid: 8\ndata: a\ndata:b\n\n"
    whole = FrameParser().feed(text)
    assert whole == [
        Frame(event="status", data="{}", id="7"),
        Frame(event="message", data="a\nb", id="8"),
    ]
    for width in (1, 2, 3, 7):
        parser = FrameParser()
        pieces = [text[at : at + width] for at in range(0, len(text), width)]
        assert [frame for piece in pieces for frame in parser.feed(piece)] == whole
