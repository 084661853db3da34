"""Hugging Face ``datasets``, made in memory, as ``run.data`` reads them."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import pytest
import torch

import elasticps
from elasticps.testing.rig import Rig
from tests.support.scripts import as_worker, as_workers, network

os.environ["HF_HUB_OFFLINE"] = "1"
datasets = pytest.importorskip("datasets", reason="pip install 'elasticps[integrations]'")

ROWS, BATCH, EPOCHS = 37, 8, 2
EVERYTHING = Counter(dict.fromkeys(range(ROWS), EPOCHS))


def table() -> Any:
    """Row i has the number i, and two features that are tensors."""
    columns = {"number": list(range(ROWS)), "pair": [[float(n), -float(n)] for n in range(ROWS)]}
    made = datasets.Dataset.from_dict(columns)
    made.set_format("torch")
    return made


def stream() -> Any:
    """In another order each epoch, in two shards."""
    return table().to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=8)


def padded(rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([torch.cat([row["number"].view(1), row["pair"]]) for row in rows])


def read(run: elasticps.Run, dataset: Any, **options: Any) -> list[int]:
    """The numbers of the rows that this worker trained on, in order."""
    optimizer = run.optimizer(network(), "sgd", lr=0.0)
    numbers: list[int] = []
    for batch in run.data(dataset, batch_size=BATCH, epochs=EPOCHS, collate=padded, **options):
        assert torch.equal(batch[:, 0], batch[:, 1])
        assert torch.equal(batch[:, 0], -batch[:, 2])
        optimizer.step()
        numbers += batch[:, 0].int().tolist()
    return numbers


@pytest.mark.parametrize("loaders", [0, 1])
async def test_a_table_is_read_in_the_promised_order(loaders: int) -> None:
    async with Rig() as rig:
        found = await as_worker(rig, lambda run: read(run, table(), num_workers=loaders))
    orders = [elasticps.sample_order(ROWS, 0, epoch).tolist() for epoch in range(EPOCHS)]
    assert found == [*orders[0], *orders[1]]


async def test_rows_without_a_collate_become_tensors_by_column() -> None:
    def script(run: elasticps.Run) -> dict[str, torch.Tensor]:
        run.optimizer(network(), "sgd", lr=0.0)
        batch: dict[str, torch.Tensor] = next(iter(run.data(table(), batch_size=4, shuffle=False)))
        return batch

    async with Rig() as rig:
        batch = await as_worker(rig, script)
    assert torch.equal(batch["number"], torch.arange(4))
    assert batch["pair"].shape == (4, 2)


@pytest.mark.parametrize("loaders", [0, 1])
async def test_a_stream_is_shuffled_anew_each_epoch_and_read_once(loaders: int) -> None:
    # Made before: a stream's epoch is in shared memory, a file that the rig would miss at its end.
    streams = [stream(), stream(), stream()]

    def script(run: elasticps.Run) -> list[int]:
        return read(run, streams.pop(), length=ROWS, num_workers=loaders)

    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, script)
    assert Counter(one + other) == EVERYTHING
    async with Rig() as rig:
        alone = await as_worker(rig, script)
    assert sorted(alone[:ROWS]) == sorted(alone[ROWS:]) == list(range(ROWS))
    assert alone[:ROWS] != alone[ROWS:]


async def test_a_row_that_cannot_be_read_ends_the_script_with_its_own_error() -> None:
    def broken(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        raise ZeroDivisionError(rows["number"])

    async with Rig() as rig:
        environment = rig.environment("w1")

        def live() -> None:
            with elasticps.join(environment) as run:
                read(run, table().with_transform(broken))

        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(live)
