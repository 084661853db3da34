"""An iterable data set as one whose items have numbers: its position is counted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from elasticps.errors import UsageError

_END = object()


def is_stream(dataset: Any) -> bool:
    """Can it only be read from its beginning on?"""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


class Counted:
    """Item ``p`` is number ``p % size`` of pass ``p // size`` over ``stream``.

    A pass reads the first ``size`` items. Every reader counts for itself, so every one must get the
    same items in the same order: ``set_epoch`` is called where the stream has it. What lies before
    the next item that is asked for is read and dropped, and for an earlier item the pass begins
    anew.
    """

    def __init__(self, stream: Any, size: int) -> None:
        if iter(stream) is stream:
            raise UsageError(
                f"a {type(stream).__name__} can be read only once",
                field="dataset",
                hint="give an IterableDataset: iter() on it must begin anew",
            )
        self._stream = stream
        self._size = size
        self._pass = -1
        self._items: Iterator[Any] = iter(())
        self._next = 0

    def __getitem__(self, position: int) -> Any:
        number, index = divmod(position, self._size)
        if number != self._pass or index < self._next:
            self._begin(number)
        item = next(islice(self._items, index - self._next, None), _END)
        self._next = index + 1
        if item is _END:
            self._pass = -1
            raise UsageError(
                f"the stream ended before its item {index}, of {self._size} that it is to have",
                field="length",
                hint="length= is how many items every pass has at least, in every worker",
            )
        return item

    def _begin(self, number: int) -> None:
        set_epoch = getattr(self._stream, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(number)
        self._pass, self._items, self._next = number, iter(self._stream), 0

    def __getstate__(self) -> dict[str, Any]:
        """Another process begins to count by itself: an open iterator cannot be taken along."""
        return {**self.__dict__, "_pass": -1, "_items": iter(()), "_next": 0}
