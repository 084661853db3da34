"""Models and the contestants that train them: alone, with torch DDP, and with elasticps.

``python -m benchmarks.training --socket PATH --how local|ddp|elasticps --model mlp|charlm`` is one
worker's script. ``local`` and ``ddp`` start the other worker themselves; a ``local`` pair computes
beside each other and exchanges nothing, so that what differs from it is communication alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contest import ROOT
from benchmarks.turns import Turns

WORKERS = 2
WIDTH, DEPTH = 2048, 6
BATCH = {"mlp": 32, "charlm": 8}
OPTIONS: Mapping[str, Any] = {"lr": 1e-3}
Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def made(name: str) -> tuple[nn.Module, Loss, Iterator[Batch]]:
    """A model, its loss, and batches of random inputs without an end."""
    torch.manual_seed(0)
    if name == "mlp":  # 25.2 million parameters
        layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        return nn.Sequential(*layers), functional.mse_loss, _vectors(BATCH[name])
    sys.path.insert(0, str(ROOT / "examples"))
    from charlm import CONTEXT, CharacterModel

    def loss(output: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output.flatten(0, 1), following.flatten())

    return CharacterModel(6), loss, _texts(BATCH[name], CONTEXT)


def _vectors(batch: int) -> Iterator[Batch]:
    inputs, targets = torch.randn(batch, WIDTH), torch.randn(batch, WIDTH)
    while True:
        yield inputs, targets


def _texts(batch: int, length: int) -> Iterator[Batch]:
    text = torch.randint(128, (batch, length + 1))
    while True:
        yield text[:, :-1], text[:, 1:]


def train(turns: Turns, model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> None:
    """Whole steps in turns: forward, backward, and the optimizer's."""
    _, loss_of, batches = made(name)
    for steps in turns:
        seconds = []
        for _, (inputs, targets) in zip(range(steps), batches, strict=False):
            began = time.perf_counter()
            optimizer.zero_grad()
            loss_of(model(inputs), targets).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - began)
        turns.report(seconds)
    finite = all(torch.isfinite(parameter).all() for parameter in model.parameters())
    turns.finished(wrong=int(not finite))


def alone(path: str, name: str, rank: int) -> None:
    model, _, _ = made(name)
    with Turns(path, rank) as turns:
        train(turns, model, torch.optim.AdamW(model.parameters(), fused=True, **OPTIONS), name)


def with_ddp(path: str, name: str, rank: int) -> None:
    model, _, _ = made(name)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = distributed.FileStore(f"{path}.store", WORKERS)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    shared = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    optimizer = torch.optim.AdamW(shared.parameters(), fused=True, **OPTIONS)
    with Turns(path, rank) as turns:
        train(turns, shared, optimizer, name)
    distributed.destroy_process_group()


def with_elasticps(path: str, name: str) -> None:
    import elasticps

    model, _, _ = made(name)
    with elasticps.join() as run:
        optimizer = run.optimizer(model, "adamw", fused=True, **OPTIONS)
        with Turns(path, run.rank) as turns:
            train(turns, model, optimizer, name)


def start(how: Callable[[str, str, int], None], path: str, name: str) -> None:
    """Both workers, this process being one of them."""
    spawn = multiprocessing.get_context("spawn")
    other = spawn.Process(target=run, args=(how, path, name, 1), daemon=True)
    other.start()
    run(how, path, name, 0)
    other.join()


def run(how: Callable[[str, str, int], None], path: str, name: str, rank: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    how(path, name, rank)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--how", choices=["local", "ddp", "elasticps"], default="elasticps")
    parser.add_argument("--model", choices=list(BATCH), required=True)
    options = parser.parse_args()
    if options.how == "elasticps":
        with_elasticps(options.socket, options.model)
    else:
        start(alone if options.how == "local" else with_ddp, options.socket, options.model)


SCRIPT = Path(__file__).resolve()

if __name__ == "__main__":
    main()
