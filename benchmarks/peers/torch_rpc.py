"""torch.distributed.rpc on TensorPipe: a call a block, all under way at once.

On one machine TensorPipe takes shared memory and CMA by itself; over TCP ``uv`` alone is left to
it. Docs: torch.distributed.rpc, TensorPipeRpcBackendOptions.
"""

from __future__ import annotations

import os
import socket
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.distributed import rpc

from benchmarks import pair
from benchmarks.workload import Size, apply, first_values, size_from

THREADS = 4
_values: list[torch.Tensor] = []


def exchange(block: int, gradient: torch.Tensor) -> torch.Tensor:
    """Runs on the server."""
    apply(_values[block], gradient)
    return _values[block]


def start(rank: int, transport: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo", TP_SOCKET_IFNAME="lo")
    tcp: dict[str, Any] = {"_transports": ["uv"], "_channels": ["basic"]}
    channels = tcp if transport == "tcp" else {}
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=THREADS, rpc_timeout=120, **channels
    )
    rpc.init_rpc(("server", "worker")[rank], rank=rank, world_size=2, rpc_backend_options=options)


def serve(pipe: Connection, size: Size, transport: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = str(port)
    _values.extend(block.clone() for block in size.blocks(first_values(size)))
    start(0, transport)
    rpc.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    options = pair.options()
    size = size_from(options)
    torch.set_num_threads(1)
    port = free_port()
    os.environ["MASTER_PORT"] = str(port)
    with pair.process(serve, size, options.transport, port):
        start(1, options.transport)

        def step(gradient: pair.Blocks, output: pair.Blocks) -> None:
            answers = [
                rpc.rpc_async("server", exchange, args=(number, block))
                for number, block in enumerate(gradient)
            ]
            for block, answer in zip(output, answers, strict=True):
                block.copy_(answer.wait())

        pair.take_turns(options.socket, size, step, apart=True)
        rpc.shutdown()


if __name__ == "__main__":
    main()
