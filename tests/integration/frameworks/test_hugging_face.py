"""Hugging Face: Trainer and Accelerate train with the servers' optimizer as with a local one."""

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
    SIZE,
    as_worker,
    as_workers,
    assert_equal,
    dataset,
    loss_of,
    network,
)

transformers = pytest.importorskip("transformers", reason="pip install 'elasticps[integrations]'")
accelerate = pytest.importorskip("accelerate", reason="pip install 'elasticps[integrations]'")

WORDS, LENGTH = 32, 12
Make = Callable[[nn.Module], optim.Optimizer]


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's state is one a process; here workers are threads, so it is one a thread."""
    state = accelerate.state
    for kept in (state.PartialState, state.AcceleratorState, state.GradientState):
        monkeypatch.setattr(kept, "_shared_state", state.ThreadLocalSharedDict())


def language_model() -> nn.Module:
    """A transformer of two layers, its output tied to its embedding, from a config alone."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def sentences(size: int = 24) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    rows = torch.randint(WORDS, (size, LENGTH), generator=random)
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder: Path, **more: Any) -> Any:
    return transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=3,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        warmup_steps=2,
        logging_steps=2,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", "max_grad_norm": 0.5, **more},
    )


def trained(folder: Path, make: Make, **more: Any) -> nn.Module:
    model = language_model()
    trainer = transformers.Trainer(
        model, arguments(folder, **more), train_dataset=sentences(), optimizers=(make(model), None)
    )
    trainer.train()
    return model


def local(model: nn.Module) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), lr=0.01)


def served(run: elasticps.Run) -> Make:
    return lambda model: run.optimizer(model, "adamw", lr=0.01)


async def test_a_trainer_trains_as_with_the_local_optimizer(tmp_path: Path) -> None:
    async with Rig() as rig:
        model = await as_worker(rig, lambda run: trained(tmp_path, served(run), num_train_epochs=2))
    wanted = trained(tmp_path, local, num_train_epochs=2)
    assert_equal(model, wanted)


async def test_a_trainer_resumes_its_own_checkpoint_in_a_new_job(tmp_path: Path) -> None:
    def script(run: elasticps.Run) -> nn.Module:
        return trained(tmp_path, served(run), max_steps=4, save_strategy="steps", save_steps=4)

    def resumed(run: elasticps.Run | None) -> nn.Module:
        model = language_model()
        optimizer = (served(run) if run else local)(model)
        trainer = transformers.Trainer(
            model,
            arguments(tmp_path, max_steps=8),
            train_dataset=sentences(),
            optimizers=(optimizer, None),
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        return model

    async with Rig() as rig:
        await as_worker(rig, script)
    async with Rig() as rig:
        model = await as_worker(rig, resumed)
    assert_equal(model, resumed(None))


async def test_trainers_share_the_data_of_the_job(tmp_path: Path) -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, int]:
        model, data = language_model(), sentences()

        class Elastic(transformers.Trainer):
            def get_train_dataloader(self) -> Any:
                return run.data(data, batch_size=8, epochs=2, collate=self.data_collator)

        trainer = Elastic(
            model,
            arguments(tmp_path, max_grad_norm=0.0, num_train_epochs=1),
            train_dataset=data,
            optimizers=(served(run)(model), None),
        )
        trainer.train()
        return model, run.round

    async with Rig(start_workers=2) as rig:
        (one, rounds), (other, _) = await as_workers(rig, 2, script)
    assert rounds == 6
    assert_equal(one, other)


async def test_trainers_accumulate_the_batches_of_the_job(tmp_path: Path) -> None:
    """Two workers come to what one comes to, with other batches of the same steps."""

    models = [language_model() for _ in range(3)]  # threads would draw from each other's seed

    def script(run: elasticps.Run) -> tuple[nn.Module, int]:
        model, data = models.pop(), sentences()

        class Elastic(transformers.Trainer):
            def get_train_dataloader(self) -> Any:
                return run.data(data, batch_size=4, accumulate=3, collate=self.data_collator)

        options = {"gradient_accumulation_steps": 3, "max_grad_norm": 0.0}
        trainer = Elastic(
            model,
            arguments(tmp_path, num_train_epochs=1, **options),
            train_dataset=data,
            optimizers=(run.optimizer(model, "sgd", lr=0.1), None),
        )
        trainer.train()
        return model, run.round

    async with Rig(start_workers=2) as rig:
        (one, rounds), (other, _) = await as_workers(rig, 2, script)
    async with Rig() as rig:
        alone, _ = await as_worker(rig, script)
    assert rounds == 2
    assert_equal(one, other)
    assert_equal(one, alone, exactly=False)


def accelerated(model: nn.Module, optimizer: optim.Optimizer) -> nn.Module:
    """Accelerate's own loop: two batches a step, the norm clipped, a scheduler stepped."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = DataLoader(dataset(SIZE), batch_size=BATCH)
    scheduler = optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
    prepared, stepped, batches, schedule = accelerator.prepare(model, optimizer, loader, scheduler)
    for inputs, targets in batches:
        with accelerator.accumulate(prepared):
            accelerator.backward(loss_of(prepared(inputs), targets))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
            stepped.step()
            schedule.step()
            stepped.zero_grad()
    return model


async def test_accelerate_prepares_it_and_accumulates_gradients() -> None:
    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        return accelerated(model, served(run)(model))

    async with Rig() as rig:
        model = await as_worker(rig, script)
    wanted = network()
    assert_equal(model, accelerated(wanted, local(wanted)))
