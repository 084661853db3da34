"""How near a connection comes to a bare uvloop socket pair that moves the same bytes.

Two processes. In each round both move blocks of 4 MiB there and back, a few at a time, and then
exchange empty frames one by one; the two take turns, so that a busy machine slows both. TLS is held
against the same bare socket without it, so that its figure beside that of plain TCP is its cost.
Prints a table, and one JSON object on the last line. See ``python -m benchmarks.wire --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, cast

import uvloop

from benchmarks.report import Show, Table, printed
from elasticps.core.ids import NodeId
from elasticps.security.authority import issue, make_authority
from elasticps.security.tls import NodeTls, TlsFiles
from elasticps.wire.address import Address
from elasticps.wire.connection import UNIX_BUFFER, Connection, connect
from elasticps.wire.frame import HEADER_SIZE, Header, Kind
from elasticps.wire.listener import listen

TIMEOUT_S = 60.0
PUSH, STATUS = Header(kind=Kind.PUSH), Header(kind=Kind.STATUS)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one round moves: ``moves`` blocks of ``size`` bytes each way, ``in_flight`` at a time,
    then ``pings`` empty frames."""

    size: int
    moves: int
    in_flight: int
    pings: int


LOAD = Load(size=4 << 20, moves=100, in_flight=4, pings=1000)


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where one server process listens, for one transport, and how its frames are encrypted."""

    frames: Address
    bare_blocks: Address
    bare_pings: Address
    tls: TlsFiles | None = None


class Block:
    """The server's dispatcher: answers a push with the block's value, and all else with nothing."""

    def __init__(self, size: int) -> None:
        self._memory = memoryview(bytearray(size))

    def destination(self, conn: Connection, header: Header, meta: bytes) -> memoryview | None:
        return self._memory

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        conn.send(header.reply(), payload=self._memory if header.kind is Kind.PUSH else None)

    def closed(self, conn: Connection) -> None:
        return


class Bare(asyncio.BufferedProtocol):
    """Receives messages of one size into one piece of memory, and does nothing else."""

    def __init__(self, size: int, on_message: Callable[[Bare], None]) -> None:
        self.memory = memoryview(bytearray(size))
        self.outgoing = memoryview(bytearray(size))
        self.on_message = on_message
        self._filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNIX_BUFFER)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.memory[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == len(self.memory):
            self._filled = 0
            self.on_message(self)

    def send(self) -> None:
        self.transport.write(self.outgoing)


async def bare_listen(address: Address, size: int) -> tuple[asyncio.Server, Address]:
    loop = asyncio.get_running_loop()

    def protocol() -> Bare:
        return Bare(size, Bare.send)

    if address.transport == "unix":
        return await loop.create_unix_server(protocol, address.path), address
    server = await loop.create_server(protocol, address.host, address.port)
    return server, Address.tcp(*server.sockets[0].getsockname()[:2])


async def serve(pipe: Pipe, load: Load, wanted: Addresses) -> None:
    block = Block(load.size)
    blocks, blocks_at = await bare_listen(wanted.bare_blocks, load.size)
    pings, pings_at = await bare_listen(wanted.bare_pings, HEADER_SIZE)
    tls = NodeTls(wanted.tls).server() if wanted.tls else None
    async with listen(wanted.frames, lambda _: block, tls=tls) as server, blocks, pings:
        pipe.send(
            replace(wanted, frames=server.address, bare_blocks=blocks_at, bare_pings=pings_at)
        )
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


def run_server(pipe: Pipe, load: Load, wanted: Addresses) -> None:
    uvloop.run(serve(pipe, load, wanted))


async def frames_move(conn: Connection, load: Load) -> float:
    """Seconds to push ``load.moves`` blocks through a connection and get as many values back."""

    gradient, value = bytearray(load.size), bytearray(load.size)

    async def push_and_pull() -> None:
        for _ in range(load.moves // load.in_flight):
            await conn.request(PUSH, payload=gradient, into=value, timeout_s=TIMEOUT_S)

    start = time.perf_counter()
    await asyncio.gather(*(push_and_pull() for _ in range(load.in_flight)))
    return time.perf_counter() - start


async def frames_ping(conn: Connection, load: Load) -> list[float]:
    """Seconds that each of ``load.pings`` empty requests took."""
    times = []
    for _ in range(load.pings):
        start = time.perf_counter()
        await conn.request(STATUS, timeout_s=TIMEOUT_S)
        times.append(time.perf_counter() - start)
    return times


async def bare_connect(address: Address, size: int) -> Bare:
    loop = asyncio.get_running_loop()

    def protocol() -> Bare:
        return Bare(size, Bare.send)

    if address.transport == "unix":
        _, bare = await loop.create_unix_connection(protocol, address.path)
    else:
        _, bare = await loop.create_connection(protocol, address.host, address.port)
    return bare


async def bare_exchange(bare: Bare, count: int, in_flight: int) -> list[float]:
    """The moments at which ``count`` messages had come back, counted from the first sending."""
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    moments: list[float] = []

    def came_back(bare: Bare) -> None:
        moments.append(time.perf_counter() - start)
        if len(moments) == count:
            finished.set_result(None)
        elif len(moments) + in_flight <= count:
            bare.send()

    bare.on_message = came_back
    start = time.perf_counter()
    for _ in range(in_flight):
        bare.send()
    await finished
    return moments


async def measure(addresses: Addresses, load: Load, rounds: int) -> dict[str, float]:
    moved = 2 * load.size * (load.moves // load.in_flight) * load.in_flight / 1e9
    frames, bare, frame_pings, bare_pings = [], [], [], []
    bare_blocks = await bare_connect(addresses.bare_blocks, load.size)
    bare_ping = await bare_connect(addresses.bare_pings, HEADER_SIZE)
    secured = NodeTls(addresses.tls).to_node(NodeId("node")) if addresses.tls else None
    async with await connect(addresses.frames, timeout_s=TIMEOUT_S, secured=secured) as conn:
        for _ in range(rounds + 1):
            moments = await bare_exchange(bare_blocks, load.moves, load.in_flight)
            bare.append(moved / moments[-1])
            frames.append(moved / await frames_move(conn, load))
            moments = await bare_exchange(bare_ping, load.pings, 1)
            bare_pings += [b - a for a, b in zip([0.0, *moments], moments, strict=False)]
            frame_pings += await frames_ping(conn, load)
    bare_blocks.transport.close()
    bare_ping.transport.close()
    ratios = [f / b for f, b in zip(frames[1:], bare[1:], strict=True)]  # the first warms up
    return {
        "gb_per_s": statistics.median(frames[1:]),
        "bare_gb_per_s": statistics.median(bare[1:]),
        "of_bare": statistics.median(ratios),
        "empty_p50_us": statistics.median(frame_pings) * 1e6,
        "bare_empty_p50_us": statistics.median(bare_pings) * 1e6,
    }


def run(wanted: Addresses, load: Load, rounds: int) -> dict[str, float]:
    """The figures of one transport, with a server process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=run_server, args=(theirs, load, wanted))
    server.start()
    try:
        return uvloop.run(measure(ours.recv(), load, rounds))
    finally:
        ours.send("stop")
        server.join()


def certificates(directory: Path) -> TlsFiles:
    ca = make_authority(directory, "benchmark", days=1).cert
    made = issue(directory, "node", ["127.0.0.1"], days=1)
    return TlsFiles(ca=ca, cert=made.cert, key=made.key)


def measure_all(load: Load, rounds: int, show: Show = printed) -> dict[str, Any]:
    """Every transport's figures, and what TLS moves of what plain TCP does."""
    table = Table(
        title="frames beside bare messages, nothing applied",
        columns=("", "GB/s", "bare", "of bare", "empty p50 us", "bare p50 us"),
    )
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        unix = [Address.unix(Path(directory) / name) for name in ("frames", "blocks", "pings")]
        tcp = [Address.tcp("127.0.0.1", 0)] * 3
        for name, (frames, blocks, pings) in {"tcp": tcp, "tls": tcp, "unix": unix}.items():
            tls = certificates(Path(directory)) if name == "tls" else None
            wanted = Addresses(frames=frames, bare_blocks=blocks, bare_pings=pings, tls=tls)
            found = results[name] = run(wanted, load, rounds)
            table.add(name, *found.values())
    show(table)
    tls_of_plain = results["tls"]["of_bare"] / results["tcp"]["of_bare"]
    return {"wire": results, "tls_of_plain": round(tls_of_plain, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=LOAD.size, help="bytes of a block")
    parser.add_argument("--moves", type=int, default=LOAD.moves, help="blocks a round, each way")
    parser.add_argument("--in-flight", type=int, default=LOAD.in_flight, help="at a time")
    parser.add_argument("--pings", type=int, default=LOAD.pings, help="empty frames in a round")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    load = Load(size=args.size, moves=args.moves, in_flight=args.in_flight, pings=args.pings)
    found = measure_all(load, args.rounds)
    results = found.pop("wire")
    print(f"TLS moves {found['tls_of_plain']:.2f} of what plain TCP does")
    print(json.dumps({"benchmark": "wire", "load": asdict(load), "results": results, **found}))


if __name__ == "__main__":
    main()
