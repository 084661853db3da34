"""A daemon's way to one etcd member, through a small TCP proxy that can spoil it."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack
from enum import Enum
from types import TracebackType
from typing import Self

CHUNK = 1 << 16
SLOW_CHUNK, SLOW_PAUSE_S = 512, 0.02
DELAY_S = 0.15
NO_LINGER = struct.pack("ii", 1, 0)
"""Makes a close an RST."""


class Weather(Enum):
    """What the link does with bytes."""

    FAIR = "as they come"
    SILENT = "holds them, in both directions, until it is fair again: half-open"
    DEAF = "holds what comes back: one way"
    LATE = "each chunk late"
    SLOW = "a trickle"
    SLICED = "one byte at a time"


class Link:
    """``async with Link(host, port) as link``: connect to ``host``:``link.port`` instead."""

    def __init__(self, host: str, target_port: int) -> None:
        self.port = 0
        self._host = host
        self._target_port = target_port
        self.carried = 0
        self._weather = Weather.FAIR
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.reset()
        await self._server.wait_closed()

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self.port}"

    async def becomes(self, weather: Weather) -> None:
        async with self._changed:
            self._weather = weather
            self._changed.notify_all()

    async def reset(self) -> int:
        """End all connections by an RST to both sides; returns how many there were."""
        relays = set(self._relays)
        for relay in relays:
            relay.cancel()
        if relays:
            await asyncio.wait(relays)
        return len(relays)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.append(back)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, back, {Weather.SILENT}))
                pumps.create_task(self._pump(there, writer, {Weather.SILENT, Weather.DEAF}))
        except* (OSError, EOFError):
            pass  # one side is gone: the other is told by the RST below
        finally:
            for each in writers:
                _abort(each)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, held_in: set[Weather]
    ) -> None:
        """Raises EOFError at the end, so that the other direction ends too."""
        while chunk := await source.read(CHUNK):
            while self._weather in held_in:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._weather not in held_in)
            if self._weather is Weather.LATE:
                await asyncio.sleep(DELAY_S)
            await self._write(chunk, sink)
            self.carried += len(chunk)
        raise EOFError

    async def _write(self, chunk: bytes, sink: asyncio.StreamWriter) -> None:
        size = {Weather.SLOW: SLOW_CHUNK, Weather.SLICED: 1}.get(self._weather, CHUNK)
        for start in range(0, len(chunk), size):
            sink.write(chunk[start : start + size])
            await sink.drain()
            await asyncio.sleep(SLOW_PAUSE_S if self._weather is Weather.SLOW else 0)


class Links:
    """One node's links, one to each member of etcd."""

    def __init__(self, host: str, target_ports: tuple[int, ...]) -> None:
        self.links = [Link(host, port) for port in target_ports]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for link in self.links:
            await self._stack.enter_async_context(link)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def endpoints(self) -> str:
        return ",".join(link.endpoint for link in self.links)

    @property
    def carried(self) -> int:
        """Bytes, in both directions."""
        return sum(link.carried for link in self.links)

    async def becomes(self, weather: Weather) -> None:
        for link in self.links:
            await link.becomes(weather)

    async def reset(self) -> int:
        return sum([await link.reset() for link in self.links])


def _abort(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()
