"""A TCP proxy on loopback that swallows answers, or cuts the link, when the test says so."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Proxy:
    """``async with Proxy(port) as proxy``: connect to ``proxy.port`` to reach ``port``."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._answering = True
        self._cut = False
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._drop_all()
        await self._server.wait_closed()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def swallow_answers(self) -> None:
        """From now on requests go through and answers do not, on these connections for ever."""
        self._answering = False

    async def answer_again(self) -> None:
        """Answers go through again, on new connections: swallowed bytes cannot be made good."""
        self._answering = True
        await self._drop_all()

    async def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._cut = True
        await self._drop_all()

    def mend(self) -> None:
        self._cut = False

    async def _drop_all(self) -> None:
        links = set(self._links)
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._relay(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except ConnectionError:
            writer.transport.abort()
            return
        try:
            up = asyncio.create_task(self._pump(reader, back, swallowing=False))
            down = asyncio.create_task(self._pump(there, writer, swallowing=True))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        finally:
            writer.transport.abort()
            back.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, swallowing: bool
    ) -> None:
        while chunk := await source.read(1 << 16):
            if swallowing and not self._answering:
                continue
            sink.write(chunk)
            await sink.drain()
