"""What many small blocks cost: the same bytes in many parameters and in few.

Two shard servers and a worker in this process, on real sockets: the seconds until every block has
its first value and all its copies, and a synchronous step (push every block, vote, pull every
block). CPU seconds say more than the clock's where other work runs beside. Prints a table, and one
JSON object on the last line. See ``python benchmarks/blocks.py --help``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time

import torch
import uvloop

from elasticps.testing.members import Blueprint
from elasticps.testing.rig import Rig
from elasticps.testing.waiting import eventually
from elasticps.wire.address import Address
from elasticps.wire.listener import listen
from elasticps.wire.tensors import bytes_of

FEW = 8


async def measure(blocks: int, nbytes: int, replicas: int, steps: int) -> dict[str, float | str]:
    """Seconds to begin and of a step, with ``nbytes`` of float32 in ``blocks`` parameters."""
    shape = (max(1, nbytes // 4 // blocks),)
    blueprint = Blueprint(
        shapes=(shape,) * blocks, optimizer="adamw", options={"lr": 1e-3}, block_bytes=1 << 26
    )
    async with listen(Address.tcp("127.0.0.1", 0), lambda _: None):
        pass  # a loop's first listener opens a descriptor that stays
    async with Rig(2, replicas=replicas) as rig:
        began, began_cpu = time.perf_counter(), time.process_time()
        member = rig.worker(blueprint)
        await member.exchange.join()
        await eventually(
            lambda: all(len(each.holders) == replicas for each in rig.entries.values())
        )
        begin_s, begin_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        walls, cpus = [], []
        for step in range(1 + steps):
            for index, parameter in enumerate(member.parameters):
                parameter.grad = torch.full_like(parameter, (index % 5 + step) * 1e-3)
            began, began_cpu = time.perf_counter(), time.process_time()
            member.exchange.begin()
            await member.exchange.round()
            walls.append(time.perf_counter() - began)
            cpus.append(time.process_time() - began_cpu)
        digest = hashlib.sha256()
        for parameter in member.parameters:
            digest.update(bytes_of(parameter))
    return {
        "begin_s": begin_s,
        "begin_cpu_s": begin_cpu_s,
        "step_ms": statistics.median(walls[1:]) * 1e3,
        "step_cpu_ms": statistics.median(cpus[1:]) * 1e3,
        "digest": digest.hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--bytes", type=int, default=2 << 20, help="of all parameters together")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    titles = ("begin", "step", "CPU", "beside few", "a block")
    print(f"{'blocks':>8}{'R':>3}" + "".join(f"{title:>12}" for title in titles))
    for replicas in (1, 2):
        few = 0.0
        for blocks in (FEW, *options.blocks):
            found = uvloop.run(measure(blocks, options.bytes, replicas, options.steps))
            cpu_ms = float(found["step_cpu_ms"])
            few = few or cpu_ms
            row = {"blocks": blocks, "replicas": replicas, **found, "cpu_vs_few": cpu_ms / few}
            rows.append(row)
            print(
                f"{blocks:8}{replicas:3}{found['begin_s']:10.2f} s{found['step_ms']:9.1f} ms"
                f"{cpu_ms:9.1f} ms{cpu_ms / few:12.1f}{cpu_ms / blocks * 1e3:9.0f} us"
            )
    print(json.dumps({"benchmark": "blocks", "bytes": options.bytes, "results": rows}))


if __name__ == "__main__":
    main()
