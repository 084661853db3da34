"""The limit of sockets: two uvloop processes and nothing but blocks, with the same SGD applied.

No header and no acknowledgement: block after block comes in its order, is applied where it landed,
and its new value goes back at once. Memory is received into and sent from in place.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch
import uvloop

from benchmarks import pair
from benchmarks.workload import Size, apply, first_values, size_from
from elasticps.wire.connection import UNIX_BUFFER
from elasticps.wire.tensors import bytes_of

OnBlock = Callable[[int], None]


class Blocks(asyncio.BufferedProtocol):
    """Receives a tensor's blocks in their order, over and over, into its own memory."""

    def __init__(self, into: pair.Blocks, on_block: OnBlock) -> None:
        self.receive_into(into)
        self.on_block = on_block

    def receive_into(self, into: pair.Blocks) -> None:
        self._memory = [bytes_of(block) for block in into]
        self._block = self._filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNIX_BUFFER)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._memory[self._block][self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == len(self._memory[self._block]):
            block, self._filled = self._block, 0
            self._block = (block + 1) % len(self._memory)
            self.on_block(block)


def serve(pipe: Connection, size: Size, transport: str) -> None:
    torch.set_num_threads(1)
    value, landed = first_values(size), torch.empty(size.numel)
    values, landing = size.blocks(value), size.blocks(landed)
    sent = [bytes_of(block) for block in values]
    connections: list[Blocks] = []

    def on_block(block: int) -> None:
        apply(values[block], landing[block])
        connections[0].transport.write(sent[block])

    def accept() -> Blocks:
        connections.append(Blocks(landing, on_block))
        return connections[-1]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryDirectory() as directory:
            if transport == "tcp":
                server = await loop.create_server(accept, "127.0.0.1", 0)
                pipe.send(server.sockets[0].getsockname()[:2])
            else:
                path = str(Path(directory) / "blocks.sock")
                server = await loop.create_unix_server(accept, path)
                pipe.send(path)
            await loop.run_in_executor(None, pair.until_closed, pipe)
            server.close()

    uvloop.run(main())


def main() -> None:
    options = pair.options()
    size = size_from(options)
    torch.set_num_threads(1)
    loop = uvloop.new_event_loop()
    with pair.process(serve, size, options.transport) as pipe:
        where = pipe.recv()
        finished = asyncio.Event()
        output = size.blocks(torch.empty(size.numel))

        def on_block(block: int) -> None:
            if block == len(output) - 1:
                finished.set()

        blocks = Blocks(output, on_block)
        connect = (
            loop.create_unix_connection(lambda: blocks, where)
            if isinstance(where, str)
            else loop.create_connection(lambda: blocks, *where)
        )
        loop.run_until_complete(connect)

        async def exchange(gradient: pair.Blocks) -> None:
            finished.clear()
            for block in gradient:
                blocks.transport.write(bytes_of(block))
            await finished.wait()

        def step(gradient: pair.Blocks, output: pair.Blocks) -> None:
            blocks.receive_into(output)
            loop.run_until_complete(exchange(gradient))

        pair.take_turns(options.socket, size, step)
        blocks.transport.close()
    loop.close()


if __name__ == "__main__":
    main()
