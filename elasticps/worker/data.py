"""The elastic data loader: each round's global batch, this worker's slice of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from elasticps.core.lending import BUILT_IN, DYNAMIC, LOCAL
from elasticps.core.ranges import DataSpec, Range, count_of, divide
from elasticps.errors import UsageError
from elasticps.worker.lease import Samples
from elasticps.worker.loading import Loader, LoaderOptions
from elasticps.worker.order import check_pieces, mask_of, pieces_of, sample_order
from elasticps.worker.streamed import Counted, is_stream

if TYPE_CHECKING:
    from elasticps.worker.training import Training

MOST = (1 << 63) - 1
"""What the ledger's messages can carry, whatever the data set."""


class Dataset(Protocol):
    """A map-style data set, which has a length."""

    def __getitem__(self, index: int, /) -> Any: ...


Stream = Iterable[Any]


class ElasticData:
    """Iterates over this worker's share of every global batch, for all epochs, once.

    The ledger lends the samples of a round, one batch or as many as the strategy's round has
    steps, to its workers, and takes back what a dead worker held.
    Each batch wants exactly one ``optimizer.step()``, or every ``accumulate`` of them one. ``spec``
    is of the samples of a step. ``epoch`` is the pass under way, from 0; ``fraction`` how much of
    this worker's samples of the step the batch has; ``len()`` the global batches of all passes.
    """

    def __init__(
        self,
        training: Training,
        dataset: Any,
        spec: DataSpec,
        *,
        accumulate: int,
        shuffle: bool,
        chunk: int,
        policy: str,
        local: Iterable[int] | None,
        collate: Callable[[list[Any]], Any] | None,
        options: LoaderOptions,
    ) -> None:
        self.epoch = 0
        self.fraction = 1.0
        self._training = training
        self._spec = spec
        self._accumulate = accumulate
        self._shuffle = shuffle
        self._chunk = chunk
        self._policy = policy
        self._counted = isinstance(dataset, Counted)
        self._orders: dict[int, torch.Tensor] = {}
        self._loader = Loader(dataset, collate, self._indices, options)
        self._local = None if local is None else mask_of(local, spec.size)
        self._read = torch.zeros(spec.size, dtype=torch.bool)
        self._held = -1

    def __len__(self) -> int:
        """The batches of all epochs: the most that a worker sees, for each may have none of some.

        Frameworks that know it need not ask for a batch before they have stepped on the last.
        """
        steps = self._spec.epochs * math.ceil(self._spec.size / self._spec.batch_size)
        return steps * self._accumulate

    def __iter__(self) -> Iterator[Any]:
        training = self._training
        ahead = math.ceil(self._loader.ahead / self._accumulate)
        rules = training.register(self._spec, self._policy, ahead)
        training.begin_reading()
        says_local = self._local is not None or rules == LOCAL
        try:
            while (samples := training.next_samples()) is not None:
                training.weight = float(count_of(samples))
                self.epoch = (samples[-1].stop - 1) // self._spec.size
                if says_local:
                    self._say_local(samples)
                yield from self._batches(samples)
        finally:
            self.close()

    def _batches(self, samples: Samples) -> Iterator[Any]:
        """Those of one step."""
        training, loader = self._training, self._loader
        parts, before = self._cut(samples), training.steps
        for number, part in enumerate(parts):
            later = [each for ahead in training.samples_ahead for each in self._cut(ahead)]
            loader.expect(list(dict.fromkeys([*parts[number:], *later])))
            self.fraction = count_of(part) / sum(map(count_of, parts))
            batch = loader.load(part)
            yield batch
            del batch
            _check_steps(training.steps - before, number + 1, self._accumulate)

    def _cut(self, samples: Samples) -> list[Samples]:
        """What one step reads as its batches.

        Where there are fewer samples than batches each has all of them: so their mean is the same,
        and who counts batches, as frameworks do, still steps with the others.
        """
        if count_of(samples) < self._accumulate:
            return [samples] * self._accumulate
        return divide(samples, self._accumulate)

    def close(self) -> None:
        """End the loader processes. Idempotent."""
        self._loader.close()

    def _say_local(self, samples: Samples) -> None:
        """Once a data epoch: where in it and the next this node's samples are.

        Where the script does not say which they are, they are those that this worker has read.
        """
        if self.epoch > self._held:
            self._held = self.epoch
            mask = self._read if self._local is None else self._local
            epochs = range(self.epoch, min(self.epoch + 2, self._spec.epochs))
            parts = [part for each in epochs for part in pieces_of(mask, self._order(each), each)]
            if self._local is not None:
                check_pieces(len(parts))
            self._training.hold(parts)
        if self._local is None:
            for part in samples:
                self._read[self._of(part)] = True

    def _indices(self, samples: Samples) -> list[int]:
        if self._counted:
            return _positions(samples)
        return torch.cat([self._of(part) for part in samples]).tolist()

    def _of(self, part: Range) -> torch.Tensor:
        """The indices of the samples at ``part``, which lies in one data epoch."""
        data_epoch, start = divmod(part.start, self._spec.size)
        return self._order(data_epoch)[start : start + len(part)]

    def _order(self, data_epoch: int) -> torch.Tensor:
        if data_epoch not in self._orders:
            self._orders = {key: self._orders[key] for key in self._orders if key >= self.epoch - 1}
            spec = self._spec
            self._orders[data_epoch] = sample_order(
                spec.size, spec.seed, data_epoch, shuffle=self._shuffle, chunk=self._chunk
            )
        return self._orders[data_epoch]


def _positions(samples: Sequence[Range]) -> list[int]:
    return [position for part in samples for position in range(part.start, part.stop)]


def _check_steps(steps: int, batches: int, accumulate: int) -> None:
    """A round that was not stepped would come again; one too many would lose its samples."""
    if steps == (batches == accumulate):
        return
    if accumulate == 1:
        raise UsageError(
            f"a batch was followed by {steps} calls of optimizer.step()",
            field="run.data",
            limit="1",
            hint="every batch wants exactly one step: to skip one, zero its gradients; to "
            "accumulate those of N batches, say run.data(..., accumulate=N)",
        )
    raise UsageError(
        f"{steps} calls of optimizer.step() after batch {batches} of accumulate={accumulate}",
        field="accumulate",
        limit="one step, after the last",
        hint="give run.data the number of batches that are accumulated for each step",
    )


def elastic_data(
    training: Training,
    dataset: Dataset | Stream,
    *,
    batch_size: int,
    accumulate: int,
    epochs: int,
    seed: int,
    shuffle: bool | None,
    chunk: int,
    length: int | None,
    policy: str,
    local: Iterable[int] | None,
    collate: Callable[[list[Any]], Any] | None,
    options: LoaderOptions,
) -> ElasticData:
    """``Run.data``, its arguments checked. Raises UsageError naming the field."""
    stream = is_stream(dataset)
    size = _size_of(dataset, length, stream=stream)
    if stream:
        _check_stream(shuffle, options, local)
    for field, least in (("num_workers", 0), ("prefetch_factor", 1)):
        if field in options:
            _whole(field, options[field], least=least)  # type: ignore[literal-required]
    accumulate = _whole("accumulate", accumulate, least=1)
    batch_size = _whole("batch_size", batch_size, least=1)
    spec = DataSpec(
        size=size,
        batch_size=_whole("accumulate", batch_size * accumulate, least=1),
        epochs=_whole("epochs", epochs, least=1),
        seed=_whole("seed", seed, least=-MOST),
    )
    return ElasticData(
        training,
        Counted(dataset, size) if stream else dataset,
        spec,
        accumulate=accumulate,
        shuffle=not stream and shuffle is not False,
        chunk=_whole("chunk", chunk, least=1),
        policy=_policy(policy, training.data_policy),
        local=local,
        collate=collate,
        options=options,
    )


def _size_of(dataset: Any, length: int | None, *, stream: bool) -> int:
    if length is not None:
        if not stream:
            raise UsageError(
                f"a {type(dataset).__name__} has a length of its own",
                field="length",
                hint="length= is for iterable data sets",
            )
        return _whole("length", length, least=1)
    try:
        size = len(dataset)
    except TypeError:
        hint = "length= says how many items a pass has" if stream else "give it a __len__"
        raise UsageError(
            f"a {type(dataset).__name__} has no length", field="dataset", hint=hint
        ) from None
    return _whole("dataset", size, least=1)


def _check_stream(
    shuffle: bool | None, options: LoaderOptions, local: Iterable[int] | None
) -> None:
    if shuffle:
        raise UsageError(
            "an iterable data set is read in its own order",
            field="shuffle",
            hint="shuffle inside it, by a seed and the epoch of its set_epoch(epoch)",
        )
    if options.get("num_workers", 0) > 1:
        raise UsageError(
            f"num_workers of {options['num_workers']} for an iterable data set",
            field="num_workers",
            limit="0 or 1: its position is counted by one reader",
        )
    if local is not None:
        raise UsageError("an iterable data set lies nowhere", field="local")


def _policy(asked: str, of_the_job: str) -> str:
    """What the ledger is to be told: nothing where the job has it already."""
    if asked in ("", of_the_job):
        return ""
    if asked not in BUILT_IN:
        raise UsageError(
            f"{asked} is no built-in data policy",
            field="policy",
            limit=", ".join(BUILT_IN),
            hint=f"choose a plugin for the whole job: --data-policy {asked}",
        )
    if of_the_job != DYNAMIC:
        raise UsageError(
            f"the job was submitted with --data-policy {of_the_job}, the script asks for {asked}",
            field="policy",
            hint="leave out one of the two",
        )
    return asked


def _whole(field: str, number: int, *, least: int) -> int:
    try:
        whole = operator.index(number)
    except TypeError:
        raise UsageError(f"{field} of {number!r}", field=field, limit="a whole number") from None
    if not least <= whole <= MOST:
        raise UsageError(f"{field} of {whole}", field=field, limit=f"{least} to {MOST}")
    return whole
