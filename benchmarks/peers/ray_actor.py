"""Ray: an actor with the value, tensors through the object store of the machine, read in place.

Blocks are put into the object store, and the actor's answers are read out of it, as NumPy arrays
over shared memory. Larger blocks than 4 MiB suit it: each object costs a few calls. Docs: Ray's
"Objects" and "Pattern: using ray.put"; numpy arrays are deserialized without a copy.
"""

from __future__ import annotations

import logging

import numpy as np
import ray
import torch

from benchmarks import pair
from benchmarks.workload import Size, apply, first_values

OBJECT_BYTES = 32 << 20


@ray.remote(num_cpus=1)
class Server:
    def __init__(self, size: Size) -> None:
        torch.set_num_threads(1)
        self._values = size.blocks(first_values(size))

    def exchange(self, block: int, gradient: np.ndarray) -> np.ndarray:
        value = self._values[block]
        apply(value, torch.from_numpy(gradient))
        return value.numpy()


def main() -> None:
    options = pair.options()
    size = Size(nbytes=options.nbytes, block_bytes=OBJECT_BYTES)
    torch.set_num_threads(1)
    store = max(512 << 20, 8 * size.nbytes)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=store,
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    server = Server.remote(size)  # type: ignore[attr-defined]

    def step(gradient: pair.Blocks, output: pair.Blocks) -> None:
        answers = [
            server.exchange.remote(number, ray.put(block.numpy()))
            for number, block in enumerate(gradient)
        ]
        for block, answer in zip(output, answers, strict=True):
            block.copy_(torch.from_numpy(ray.get(answer)))

    try:
        pair.take_turns(options.socket, size, step)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
