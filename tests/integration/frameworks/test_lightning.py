"""Lightning: what ``configure_optimizers`` returns may step on the servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader

import elasticps
from elasticps.testing.rig import Rig
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    dataset,
    loss_of,
    network,
)

lightning = pytest.importorskip("lightning", reason="pip install 'elasticps[integrations]'")
Make = Callable[[nn.Module], optim.Optimizer]


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, make: Make) -> None:
        super().__init__()
        self.network = network()
        self._make = make

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        inputs, targets = batch
        return loss_of(self.network(inputs), targets)

    def configure_optimizers(self) -> Any:
        optimizer = self._make(self)
        schedule = optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def local(module: nn.Module) -> optim.Optimizer:
    return optim.AdamW(module.parameters(), lr=0.01)


def served(run: elasticps.Run) -> Make:
    return lambda module: run.optimizer(module, "adamw", lr=0.01)


def fit(
    module: Module, folder: Path, data: Any = None, resume: str | None = None, **more: Any
) -> Any:
    options: dict[str, Any] = {"max_epochs": 1, "gradient_clip_val": 0.5, **more}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(module, data or DataLoader(dataset(), batch_size=BATCH), ckpt_path=resume)
    return trainer


async def test_it_trains_as_with_the_local_optimizer(tmp_path: Path) -> None:
    def script(make: Make) -> nn.Module:
        module = Module(make)
        fit(module, tmp_path, max_epochs=2, accumulate_grad_batches=2)
        return module

    async with Rig() as rig:
        model = await as_worker(rig, lambda run: script(served(run)))
    assert_equal(model, script(local))


async def test_it_accumulates_the_batches_of_the_job(tmp_path: Path) -> None:
    def script(make: Make, data: Any) -> nn.Module:
        module = Module(make)
        fit(module, tmp_path, data, accumulate_grad_batches=2)
        return module

    def elastic(run: elasticps.Run) -> nn.Module:
        data = run.data(dataset(64), batch_size=BATCH, accumulate=2, shuffle=False)
        return script(served(run), data)

    async with Rig() as rig:
        model = await as_worker(rig, elastic)
    assert_equal(model, script(local, DataLoader(dataset(64), batch_size=BATCH)))


async def test_its_checkpoint_resumes_in_a_new_job(tmp_path: Path) -> None:
    saved = str(tmp_path / "saved.ckpt")

    def resumed(make: Make) -> nn.Module:
        module = Module(make)
        fit(module, tmp_path, resume=saved, max_epochs=2)
        return module

    async with Rig() as rig:
        await as_worker(rig, lambda run: fit(Module(served(run)), tmp_path).save_checkpoint(saved))
    async with Rig() as rig:
        model = await as_worker(rig, lambda run: resumed(served(run)))
    assert_equal(model, resumed(local))


async def test_workers_share_the_data_of_the_job(tmp_path: Path) -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, int]:
        module = Module(served(run))
        data = run.data(dataset(64), batch_size=BATCH, epochs=2)
        fit(module, tmp_path, data, gradient_clip_val=None)
        return module, run.round

    async with Rig(start_workers=2) as rig:
        (one, rounds), (other, _) = await as_workers(rig, 2, script)
    assert rounds == 16
    assert_equal(one, other)
