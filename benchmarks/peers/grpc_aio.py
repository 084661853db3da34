"""grpc.aio: one bidirectional stream, one block a message of raw bytes, no limit on its length.

Docs: gRPC's Python performance guide (streaming RPCs, one channel, optimistic writes off the hot
path) and its channel arguments; generic handlers, so that nothing is serialized twice.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import grpc
import torch
import uvloop

from benchmarks import pair
from benchmarks.workload import Size, apply, first_values, size_from
from elasticps.wire.tensors import bytes_of

METHOD = "/benchmark/exchange"
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.max_frame_size", (1 << 24) - 1),
    ("grpc.http2.lookahead_bytes", 64 << 20),
    ("grpc.http2.bdp_probe", 1),
]


def tensor_of(message: bytes) -> torch.Tensor:
    return torch.frombuffer(message, dtype=torch.float32)


def serve(pipe: Connection, size: Size, where: str) -> None:
    torch.set_num_threads(1)
    values = size.blocks(first_values(size))

    async def exchange(blocks: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        number = 0
        async for block in blocks:
            apply(values[number], tensor_of(block))
            yield bytes(bytes_of(values[number]))
            number = (number + 1) % len(values)

    async def main() -> None:
        server = grpc.aio.server(options=OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(exchange)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("benchmark", {"exchange": handler}),)
        )
        port = server.add_insecure_port(where)
        await server.start()
        pipe.send(f"127.0.0.1:{port}" if where.endswith(":0") else where)
        await asyncio.get_running_loop().run_in_executor(None, pair.until_closed, pipe)
        await server.stop(0)

    uvloop.run(main())


def main() -> None:
    options = pair.options()
    size = size_from(options)
    torch.set_num_threads(1)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    with tempfile.TemporaryDirectory() as directory:
        tcp = options.transport == "tcp"
        where = "127.0.0.1:0" if tcp else f"unix:{Path(directory) / 'grpc.sock'}"
        with pair.process(serve, size, where) as pipe:
            loop.run_until_complete(_steps(pipe.recv(), options.socket, size, loop))


async def _steps(where: str, path: str, size: Size, loop: asyncio.AbstractEventLoop) -> None:
    async with grpc.aio.insecure_channel(where, options=OPTIONS) as channel:
        stream = channel.stream_stream(METHOD)()  # type: ignore[call-arg]
        await stream.wait_for_connection()

        async def push(gradient: pair.Blocks) -> None:
            for block in gradient:
                await stream.write(bytes(bytes_of(block)))

        async def exchange(gradient: pair.Blocks, output: pair.Blocks) -> None:
            pushing = asyncio.ensure_future(push(gradient))
            for block in output:
                block.copy_(tensor_of(cast("bytes", await stream.read())))
            await pushing

        def step(gradient: pair.Blocks, output: pair.Blocks) -> None:
            asyncio.run_coroutine_threadsafe(exchange(gradient, output), loop).result()

        await loop.run_in_executor(None, pair.take_turns, path, size, step)
        stream.cancel()


if __name__ == "__main__":
    main()
