"""The elastic data loader: each round's global batch, this worker's slice of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import default_collate

from elasticps.core.ranges import DataSpec, Range
from elasticps.errors import UsageError

if TYPE_CHECKING:
    from elasticps.worker.run import Run


MOST = (1 << 63) - 1
"""What the ledger's messages can carry, whatever the data set."""


class Dataset(Sized, Protocol):
    """A map-style data set."""

    def __getitem__(self, index: int, /) -> Any: ...


def sample_order(size: int, seed: int, data_epoch: int, *, shuffle: bool = True) -> torch.Tensor:
    """The order of a pass over the data: a function of its arguments alone, the same everywhere."""
    if not shuffle:
        return torch.arange(size)
    generator = torch.Generator().manual_seed(seed + data_epoch)
    return torch.randperm(size, generator=generator)


class ElasticData:
    """Iterates over this worker's share of every global batch, for all epochs, once.

    The ledger lends the samples of a round, one batch or as many as the strategy's round has
    steps, to its workers, and takes back what a dead worker held.
    Each batch wants exactly one ``optimizer.step()``. ``epoch`` is the pass under way, from 0.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        spec: DataSpec,
        *,
        shuffle: bool,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        self.epoch = 0
        self._run = run
        self._dataset = dataset
        self._spec = spec
        self._shuffle = shuffle
        self._collate = collate
        self._orders: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        """The batches of all epochs: the most that a worker sees, for each may have none of some.

        Frameworks that know it need not ask for a batch before they have stepped on the last.
        """
        return self._spec.epochs * math.ceil(self._spec.size / self._spec.batch_size)

    def __iter__(self) -> Iterator[Any]:
        self._run.register(self._spec)
        while (samples := self._run.next_samples()) is not None:
            self._run.weight = float(sum(len(part) for part in samples))
            before = self._run.steps
            yield self._collate([self._dataset[index] for index in self._indices(samples)])
            _check_stepped_once(self._run.steps - before)

    def _indices(self, samples: Sequence[Range]) -> list[int]:
        size = self._spec.size
        positions = [position for part in samples for position in range(part.start, part.stop)]
        self.epoch = positions[-1] // size
        return [int(self._order(position // size)[position % size]) for position in positions]

    def _order(self, data_epoch: int) -> torch.Tensor:
        if data_epoch not in self._orders:
            self._orders = {key: self._orders[key] for key in self._orders if key >= self.epoch - 1}
            self._orders[data_epoch] = sample_order(
                self._spec.size, self._spec.seed, data_epoch, shuffle=self._shuffle
            )
        return self._orders[data_epoch]


def _check_stepped_once(steps: int) -> None:
    """A round that was not stepped would come again; one too many would lose its samples."""
    if steps != 1:
        raise UsageError(
            f"a batch was followed by {steps} calls of optimizer.step()",
            field="run.data",
            limit="1",
            hint="every batch wants exactly one step; to skip one, zero its gradients",
        )


def data_spec(dataset: Dataset, *, batch_size: int, epochs: int, seed: int) -> DataSpec:
    """Checked numbers of a data set. Raises UsageError naming the field."""
    try:
        size = len(dataset)
    except TypeError:
        raise UsageError(
            f"a {type(dataset).__name__} has no length: run.data needs a map-style data set",
            field="dataset",
        ) from None
    return DataSpec(
        size=_whole("dataset", size, least=1),
        batch_size=_whole("batch_size", batch_size, least=1),
        epochs=_whole("epochs", epochs, least=1),
        seed=_whole("seed", seed, least=-MOST),
    )


def _whole(field: str, number: int, *, least: int) -> int:
    try:
        whole = operator.index(number)
    except TypeError:
        raise UsageError(f"{field} of {number!r}", field=field, limit="a whole number") from None
    if not least <= whole <= MOST:
        raise UsageError(f"{field} of {whole}", field=field, limit=f"{least} to {MOST}")
    return whole
