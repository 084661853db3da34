"""Threads that share out a large block's pieces; the event loop's own is the first of them.

Torch lets go of the interpreter's lock in its kernels, and NumPy in its copies, so pieces large
enough for these to be most of the time are worked on side by side.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import torch

from elasticps.wire.tensors import copy_bytes

COPIED_BYTES = 512 * 1024
"""By one thread at a time."""

Work = Callable[[int, int], None]
"""Given the number of the thread, and of the piece: no two of one thread are under way at once."""


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """Pieces that are ``left`` to begin, and for each that is done what it raised."""

    work: Work
    left: Iterator[int]
    done: SimpleQueue[Exception | None] = field(default_factory=SimpleQueue)

    def take_part(self, thread: int) -> None:
        for piece in self.left:
            try:
                self.work(thread, piece)
            except Exception as error:  # raised where the pieces were shared out
                self.done.put(error)
            else:
                self.done.put(None)


class ComputeThreads:
    """``count`` of them, the caller's among them: with one all is as without any.

    The others are started when there is first something to share out. They sleep until there is
    more, and are not waited for where they come too late.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._queue: SimpleQueue[_Shared | None] = SimpleQueue()
        self._others: list[threading.Thread] = []
        self._rooms: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def share_out(self, pieces: int, work: Work) -> None:
        """Return when ``work`` has been done on each of so many pieces; raises what one raised."""
        if self.count == 1 or pieces < 2:
            for piece in range(pieces):
                work(0, piece)
            return
        self._start()
        shared = _Shared(work, iter(range(pieces)))
        self._forget_earlier()
        for _ in self._others[: pieces - 1]:
            self._queue.put(shared)
        shared.take_part(0)
        errors = [shared.done.get() for _ in range(pieces)]
        for error in errors:
            if error is not None:
                raise error

    def copy(self, target: memoryview, source: memoryview) -> None:
        """Copy flat bytes of one length."""

        def part(_: int, piece: int) -> None:
            stretch = slice(piece * COPIED_BYTES, (piece + 1) * COPIED_BYTES)
            copy_bytes(target[stretch], source[stretch])

        self.share_out(-(-len(target) // COPIED_BYTES), part)

    def room(self, thread: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory of a thread's own for so many elements, until it asks again."""
        room = self._rooms.get((thread, dtype))
        if room is None or room.numel() < numel:
            room = self._rooms[thread, dtype] = torch.empty(numel, dtype=dtype)
        return room[:numel]

    def _start(self) -> None:
        for number in range(len(self._others) + 1, self.count):
            thread = threading.Thread(
                target=self._run, args=(number,), name=f"elasticps-compute-{number}", daemon=True
            )
            thread.start()
            self._others.append(thread)

    def _forget_earlier(self) -> None:
        """Who wakes up late is to find what is worked on now."""
        with contextlib.suppress(Empty):
            while True:
                self._queue.get_nowait()

    def _run(self, number: int) -> None:
        while (shared := self._queue.get()) is not None:
            shared.take_part(number)
            del shared  # which has others' memory

    def close(self) -> None:
        """End the others. Idempotent."""
        for _ in self._others:
            self._queue.put(None)
        for thread in self._others:
            thread.join()
        self._others.clear()
