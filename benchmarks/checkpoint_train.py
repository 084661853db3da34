"""What ``benchmarks/checkpoint.py`` trains: parameters of a given size with Adam, timed by step.

Its last line is the digest of the parameters; each step's end is a line ``round time``.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import torch

import elasticps

PARAMETER = 4 << 20
"""Elements of each parameter: 16 MiB of float32."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--think-s", type=float, default=0.0)
    parser.add_argument("--noise", action="store_true", help="random numbers in each gradient")
    parser.add_argument("--out", required=True)
    wanted = parser.parse_args()
    numel = int(wanted.mb * 1e6 / 4)
    random = torch.Generator().manual_seed(1)
    sizes = [min(PARAMETER, numel - start) for start in range(0, numel, PARAMETER)]
    model = torch.nn.ParameterList(torch.randn(size, generator=random) for size in sizes)
    with elasticps.join() as run, Path(wanted.out).open("w") as out:
        optimizer = run.optimizer(model, "adam", lr=1e-3)
        run.seed(1)
        while run.round < wanted.rounds:
            for parameter in model:
                parameter.grad = parameter.detach() * 0.1
                if wanted.noise:
                    parameter.grad += torch.randn_like(parameter) * 0.01
            time.sleep(wanted.think_s)
            optimizer.step()
            print(run.round, time.time(), file=out, flush=True)
        digest = hashlib.sha256()
        for parameter in model:
            digest.update(parameter.detach().numpy().tobytes())
        print(digest.hexdigest(), file=out)


if __name__ == "__main__":
    main()
