"""What ``benchmarks/plan.py`` trains: ``LAYERS STEPS ROUNDS``, so many rounds of so many steps."""

import sys
import time

import torch

import elasticps

layers, steps, rounds = (int(argument) for argument in sys.argv[1:])
WARM_UP = 2
features = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))

with elasticps.join() as run:
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(layers)))
    optimizer = run.optimizer(model, "adam", lr=1e-4)
    times = [time.perf_counter()]
    # No run.data: a round's samples end with their data epoch, and so does the round.
    while len(times) <= WARM_UP + rounds:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(features), features.flip(1).sin()).backward()
        optimizer.step()
        if run.steps % steps == 0:
            times.append(time.perf_counter())
    run.log(step_s=(times[-1] - times[WARM_UP]) / (rounds * steps))
