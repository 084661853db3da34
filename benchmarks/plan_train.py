"""What ``benchmarks/plan.py`` trains: ``LAYERS STEPS ROUNDS``, so many rounds of so many steps."""

import itertools
import statistics
import sys
import time

import torch

import elasticps

layers, steps, rounds = (int(argument) for argument in sys.argv[1:])
WARM_UP = 2
features = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
data = torch.utils.data.TensorDataset(features, features.flip(1).sin())

with elasticps.join() as run:
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(layers)))
    optimizer = run.optimizer(model, "adam", lr=1e-4)
    times = [time.perf_counter()]
    for x, y in run.data(data, batch_size=64, epochs=1_000_000):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if run.steps % steps == 0:
            times.append(time.perf_counter())
        if len(times) > WARM_UP + rounds:
            break
    apart = [later - sooner for sooner, later in itertools.pairwise(times[WARM_UP:])]
    run.log(step_s=statistics.median(apart) / steps)
