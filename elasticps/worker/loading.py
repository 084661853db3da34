"""A torch DataLoader that is told from round to round what to load, and what will come next."""

from __future__ import annotations

import ctypes
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from elasticps.core.reading import MAX_AHEAD
from elasticps.errors import UsageError
from elasticps.worker.lease import Samples

PR_SET_PDEATHSIG = 1


class LoaderOptions(TypedDict, total=False):
    """Arguments of ``torch.utils.data.DataLoader``, with torch's meaning and defaults."""

    num_workers: int
    pin_memory: bool
    prefetch_factor: int
    timeout: float
    worker_init_fn: Callable[[int], None]
    multiprocessing_context: str


class Loader:
    """Batches by the samples that they are made of, the next ones loaded beforehand.

    The loader processes take their work in order. What is expected is given to them as long as none
    of it has to be waited for; what turns out not to be needed is dropped once it is loaded.
    ``indices`` are those of the data set's items for a batch's samples.
    """

    def __init__(
        self,
        items: Any,
        collate: Callable[[list[Any]], Any] | None,
        indices: Callable[[Samples], list[int]],
        options: LoaderOptions,
    ) -> None:
        workers = options.get("num_workers", 0)
        depth = workers * options.get("prefetch_factor", 2)
        self.ahead = min(MAX_AHEAD, depth + 1) if depth else 0
        self._indices = indices
        self._expected: deque[Samples] = deque()
        self._sent: deque[Samples | None] = deque()
        self._wanted: set[Samples] = set()
        self._loaded: dict[Samples, Any] = {}
        self._batches: Iterator[Any] | None = None
        chosen: dict[str, Any] = dict(options)
        if workers:
            chosen["worker_init_fn"] = _Begin(options.get("worker_init_fn"))
        try:
            self._loader = DataLoader(
                _Items(items),
                batch_sampler=_Feed(self._next),
                collate_fn=_Collate(collate or default_collate),
                **chosen,
            )
        except (TypeError, ValueError) as error:
            raise UsageError(f"the DataLoader refuses: {error}", field="run.data") from error

    def expect(self, batches: Sequence[Samples]) -> None:
        """These are to be loaded, in this order; what was expected before and is not, is not."""
        known = {*self._loaded, *self._sent}
        self._wanted = set(batches)
        self._loaded = {key: item for key, item in self._loaded.items() if key in self._wanted}
        self._expected = deque(batch for batch in batches if batch not in known)
        # An empty batch at the head is the next that its process is at: it is there at once.
        while self._expected and self._sent and self._sent[0] is None:
            self._receive()

    def load(self, batch: Samples) -> Any:
        """The batch, once it is there. Raises what the data set raises."""
        if batch not in self._wanted:
            self.expect([batch])
        while batch not in self._loaded:
            self._receive()
        return self._loaded.pop(batch)

    def close(self) -> None:
        """End the loader processes. Idempotent."""
        # They end with torch's iterator, which an exception's traceback may keep.
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        self._batches = None
        if shut_down is not None:
            shut_down()

    def _receive(self) -> None:
        if self._batches is None:
            # Torch draws a seed for the loader processes: a script's own numbers go on as if not.
            before = torch.get_rng_state()
            self._batches = iter(self._loader)
            torch.set_rng_state(before)
        try:
            loaded = next(self._batches)
        finally:
            samples = self._sent.popleft()
        if samples in self._wanted:
            self._loaded[samples] = loaded

    def _next(self) -> list[int]:
        samples = self._expected.popleft() if self._expected else None
        self._sent.append(samples)
        return [] if samples is None else self._indices(samples)


class _Feed:
    """A batch sampler without end: where nothing is to be loaded, a batch is empty."""

    def __init__(self, following: Callable[[], list[int]]) -> None:
        self._following = following

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield self._following()


class _Items(Dataset[Any]):
    """A data set whose items are asked for a batch at a time; none where none are asked for."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if not indices:
            return []
        many = getattr(self._dataset, "__getitems__", None)
        found: list[Any] = many(indices) if many else [self._dataset[index] for index in indices]
        return found


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: list[Any]) -> Any:
        return self._collate(items) if items else None


class _Begin:
    """What a loader process does first."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, number: int) -> None:
        # Forked, it holds the worker's sockets: they must close when a killed worker is gone.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self._then is not None:
            self._then(number)
