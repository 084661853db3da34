"""A Hugging Face Trainer on an elastic job: a small GPT-2, made from a config, learns to count.

elasticps run --nodes 2 examples/hugging_face.py
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import transformers

import elasticps

WORDS, LENGTH, BATCH = 16, 12, 16


def sentences(size: int) -> list[dict[str, torch.Tensor]]:
    """Rows that count up from anywhere: 5, 6, 7, ..."""
    starts = torch.randint(WORDS, (size, 1), generator=torch.Generator().manual_seed(1))
    rows = (starts + torch.arange(LENGTH)) % WORDS
    return [{"input_ids": row, "labels": row} for row in rows]


def language_model() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def main(epochs: int, size: int) -> None:
    with elasticps.join() as run, tempfile.TemporaryDirectory() as folder:  # join first of all
        model, data = language_model(), sentences(size)

        class ElasticTrainer(transformers.Trainer):
            def get_train_dataloader(self) -> Any:
                """The job's data, all epochs of them: ranges are lent, none lost or repeated."""
                return run.data(data, batch_size=BATCH, epochs=epochs, collate=self.data_collator)

        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,  # one pass over what run.data gives
            use_cpu=True,
            max_grad_norm=0.0,  # it is the round's gradient that is clipped, see below
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        optimizer = run.optimizer(model, "adamw", lr=3e-3, clip_grad_norm=1.0)
        schedule = transformers.get_constant_schedule_with_warmup(optimizer, num_warmup_steps=4)
        trainer = ElasticTrainer(
            model, arguments, train_dataset=data, optimizers=(optimizer, schedule)
        )
        loss = trainer.train().training_loss
        if run.is_main:
            print(f"loss {loss:.4f} after {run.round} rounds")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--sentences", type=int, default=256)
    chosen = options.parse_args()
    main(chosen.epochs, chosen.sentences)
