"""The limit of memory: how fast bytes are copied, with one thread and with all cores.

``python -m benchmarks.memory --socket PATH --nbytes N --threads T`` is a contestant; a step of it
copies ``nbytes``, which reads and writes as many.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.turns import Turns

TOUCHED_PER_ELEMENT = 16
"""Bytes that a step on shared memory cannot avoid, in float32: the gradient and the value are read,
the server's value and the worker's are written."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--nbytes", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = torch.randn(options.nbytes // 4)
    target = torch.empty_like(source)
    with Turns(options.socket) as turns:
        for steps in turns:
            seconds = []
            for _ in range(steps):
                began = time.perf_counter()
                target.copy_(source)
                seconds.append(time.perf_counter() - began)
            turns.report(seconds)
        turns.finished(wrong=int((target != source).sum()), checked=source.numel())


def copied_bytes_per_s(nbytes: int, seconds: float) -> float:
    """What was read and written."""
    return 2 * nbytes / seconds


def roofline_s(nbytes: int, bytes_per_s: float) -> float:
    """The least time of a step that pushes and pulls ``nbytes`` of float32."""
    return nbytes // 4 * TOUCHED_PER_ELEMENT / bytes_per_s


if __name__ == "__main__":
    main()
