"""The script of ``elasticps bench``: push a random gradient, have SGD applied, pull all of it.

Runs in each worker of its job: ``bench.py NBYTES STEPS EXACT``. The value is poisoned before each
step, and every element is held against ``torch.optim.SGD`` at the end where EXACT is 1.
"""

from __future__ import annotations

import sys
import time

import torch

import elasticps
from elasticps.core.push_pull import PushPull, to_metrics

LR = 0.01
WARM_UP = 3
SEED = 7


def main(nbytes: int, steps: int, *, exact: bool) -> None:
    generator = torch.Generator().manual_seed(SEED)  # the same in each worker
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.randn(nbytes // 4, generator=generator))
    gradient = torch.randn(nbytes // 4, generator=generator)
    with elasticps.join() as run:
        expected = model.weight.detach().clone()
        optimizer = run.optimizer(model, "sgd", lr=LR)
        model.weight.grad = gradient.clone()
        seconds = []
        for _ in range(WARM_UP + steps):
            model.weight.grad.copy_(gradient)
            model.weight.data.fill_(torch.nan)
            began = time.perf_counter()
            optimizer.step()
            seconds.append(time.perf_counter() - began)
        wrong = int((~torch.isfinite(model.weight)).sum())
        if exact:
            wrong = _wrong(model.weight.detach(), expected, gradient, len(seconds))
        timed = sorted(seconds[WARM_UP:])
        found = PushPull(
            nbytes=nbytes,
            steps=steps,
            p50_s=timed[len(timed) // 2],
            p99_s=timed[len(timed) * 99 // 100],
            wrong=wrong,
            sent=run.traffic,
        )
        run.log(**to_metrics(found))


def _wrong(value: torch.Tensor, before: torch.Tensor, gradient: torch.Tensor, steps: int) -> int:
    """How many elements are not what plain SGD makes of them."""
    expected = torch.nn.Parameter(before)
    expected.grad = gradient
    local = torch.optim.SGD([expected], lr=LR)
    for _ in range(steps):
        local.step()
    return int((~torch.isclose(value, expected.detach(), rtol=1e-5, atol=1e-5)).sum())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), exact=sys.argv[3] == "1")
