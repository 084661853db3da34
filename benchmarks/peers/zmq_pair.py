"""pyzmq: DEALER sockets, one block a message, no copies (``copy=False``), over ipc or TCP.

Docs: pyzmq's "Working with buffers"; zmq_setsockopt's ZMQ_SNDHWM, ZMQ_SNDBUF and ZMQ_RCVBUF.
"""

from __future__ import annotations

import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import zmq

from benchmarks import pair
from benchmarks.workload import Size, apply, first_values, size_from
from elasticps.wire.tensors import bytes_of

BUFFER = 4 << 20
IDLE_MS = 200


def socket_of(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    made = context.socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.SNDHWM, 0)
    made.setsockopt(zmq.RCVHWM, 0)
    made.setsockopt(zmq.SNDBUF, BUFFER)
    made.setsockopt(zmq.RCVBUF, BUFFER)
    return made


def tensor_of(frame: zmq.Frame) -> torch.Tensor:
    return torch.frombuffer(frame.buffer, dtype=torch.float32)


def serve(pipe: Connection, size: Size, where: str) -> None:
    torch.set_num_threads(1)
    value = first_values(size)
    values = size.blocks(value)
    sent = [bytes_of(block) for block in values]
    with zmq.Context(io_threads=1) as context, socket_of(context) as server:
        server.bind(where)
        pipe.send(server.getsockopt(zmq.LAST_ENDPOINT).decode())
        block = 0
        while not pipe.poll():
            if not server.poll(IDLE_MS):
                continue
            frame = server.recv(copy=False)
            apply(values[block], tensor_of(frame))
            server.send(sent[block], copy=False)
            block = (block + 1) % len(values)


def main() -> None:
    options = pair.options()
    size = size_from(options)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        tcp = options.transport == "tcp"
        where = "tcp://127.0.0.1:*" if tcp else f"ipc://{Path(directory) / 'zmq.sock'}"
        with (
            pair.process(serve, size, where) as pipe,
            zmq.Context(io_threads=1) as context,
            socket_of(context) as client,
        ):
            client.connect(pipe.recv())

            def step(gradient: pair.Blocks, output: pair.Blocks) -> None:
                for block in gradient:
                    client.send(bytes_of(block), copy=False)
                for block in output:
                    block.copy_(tensor_of(client.recv(copy=False)))

            pair.take_turns(options.socket, size, step)


if __name__ == "__main__":
    main()
