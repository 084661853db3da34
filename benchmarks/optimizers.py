"""What a step of each optimizer costs a shard server, and what torch's other kernels would save.

One block of ``--kib`` KiB on one thread, as a server holds it. Torch has up to three kernels for a
class: ``plain`` (its default on a CPU), ``foreach`` and ``fused``; they take steps by turns, so
that a busy machine slows all of them. Prints a table of the fastest step of each and its ratio to
the plain one's, and one JSON object on the last line.
See ``python benchmarks/optimizers.py --help``.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from typing import Any

import torch

from elasticps.api.optimizer import Optimizer, TorchOptimizer
from elasticps.core.blocks import Model, Parameter, partition
from elasticps.optimizers import builtin
from elasticps.optimizers.muon import muon
from elasticps.server.tensor_block import TensorBlock
from elasticps.worker.parameters import plain

KERNELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
ROWS = 256
"""Of the parameter, for the optimizers that see its shape."""


def a_block(plugin: Optimizer, options: dict[str, Any], kib: int) -> TensorBlock:
    shape = (ROWS, kib * 256 // ROWS)
    groups = plugin.create([{"params": [torch.zeros(shape)]}], options).param_groups
    parameter = Parameter(name="p", shape=shape, dtype="float32")
    model = Model(
        parameters=(parameter,),
        optimizer="x",
        options=options,
        groups=tuple(plain(group) for group in groups),
        elementwise=plugin.elementwise,
        block_bytes=kib * 1024,
    )
    (block,) = partition(model)
    return TensorBlock(block, parameter, model, plugin)


def kernels_of(plugin: TorchOptimizer) -> list[str]:
    known = inspect.signature(plugin.cls).parameters
    return [name for name, options in KERNELS.items() if options.keys() <= known.keys()]


def fastest_ms(plugin: TorchOptimizer, kib: int, steps: int) -> dict[str, float]:
    """The fastest step of each kernel, in ms."""
    blocks = {name: a_block(plugin, KERNELS[name], kib) for name in kernels_of(plugin)}
    fastest = dict.fromkeys(blocks, float("inf"))
    payload = torch.randn(kib * 256).view(torch.uint8)
    for _ in range(steps):
        for name, block in blocks.items():
            gradient = block.gradient_from(payload.clone())
            began = time.perf_counter()
            block.step(gradient, {})
            fastest[name] = min(fastest[name], 1e3 * (time.perf_counter() - began))
    return fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kib", type=int, default=4096, help="size of the block (4096)")
    parser.add_argument("--steps", type=int, default=30, help="steps of each kernel (30)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"fastest of {asked.steps} steps on a block of {asked.kib} KiB, in ms (beside plain)")
    results = {}
    plugins = {name: item for name, item in vars(builtin).items() if hasattr(item, "cls")}
    for name, plugin in sorted({**plugins, "muon": muon}.items()):
        found = results[name] = fastest_ms(plugin, asked.kib, asked.steps)
        cells = [f"{kernel} {ms:6.2f} ({ms / found['plain']:.2f})" for kernel, ms in found.items()]
        print(f"{name:10}", "  ".join(cells), flush=True)
    print(json.dumps({"kib": asked.kib, "steps": asked.steps, "fastest_ms": results}))


if __name__ == "__main__":
    main()
