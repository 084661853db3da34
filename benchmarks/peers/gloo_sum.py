"""gloo's all-reduce between two ranks, each of which then applies SGD to a copy of its own.

What it moves is compared as 2 x size over the time, as for the others. Gloo goes over TCP on one
machine too. Docs: torch.distributed, "Which backend to use", GLOO_SOCKET_IFNAME.
"""

from __future__ import annotations

import os
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
from torch import distributed

from benchmarks import pair
from benchmarks.peers.torch_rpc import free_port
from benchmarks.workload import Size, apply, first_values

TIMEOUT = timedelta(seconds=3600)


def start(rank: int, port: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=TIMEOUT
    )


def serve(pipe: Connection, size: Size, port: int) -> None:
    """The other rank: it gives zeros, so that the sum is the one gradient there is."""
    torch.set_num_threads(1)
    start(0, port)
    value, summed = first_values(size), torch.zeros(size.numel)
    while pipe.recv():
        summed.zero_()
        pipe.send(True)
        distributed.all_reduce(summed)
        apply(value, summed)
    distributed.destroy_process_group()


def main() -> None:
    options = pair.options()
    size = Size(nbytes=options.nbytes, block_bytes=options.nbytes)  # gloo cuts by itself
    torch.set_num_threads(1)
    port = free_port()
    with pair.process(serve, size, port) as pipe:
        start(1, port)

        def prepare() -> None:
            pipe.send(True)
            pipe.recv()

        def step(gradient: pair.Blocks, output: pair.Blocks) -> None:
            distributed.all_reduce(gradient[0])
            apply(output[0], gradient[0])

        pair.take_turns(options.socket, size, step, prepare=prepare, in_place=True)
        pipe.send(False)
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
