"""Threads that share out a large block's pieces; the event loop's own is the first of them.

Torch lets go of the interpreter's lock in its kernels, and NumPy in its copies, so pieces large
enough for these to be most of the time are worked on side by side.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import torch

from elasticps.wire.tensors import copy_bytes

COPIED_BYTES = 512 * 1024
"""By one thread at a time."""
LATE_S = 0.002
"""A piece takes some tenths of a millisecond; one whose thread has lost its core takes longer."""
NEWEST, MUCH, TRIED_EVERY = 0.2, 0.5, 8
"""Of how often the others are late: what the newest time counts, and from when on it is often."""

Work = Callable[[int, int], None]
"""Given the number of the thread, and of the piece: no two of one thread are under way at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """``work`` on so many pieces. ``ended`` is called in the caller's thread, with an error if any
    piece raised one."""

    pieces: int
    work: Work
    ended: Callable[[Exception | None], None]


def raised(error: Exception | None) -> None:
    """The end of a share whose error is for whoever shares it out."""
    if error is not None:
        raise error


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
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


@dataclass(slots=True)
class Crowding:
    """Whether other processes take the cores: a thread that has a piece and no core is waited for.

    ``late``: how often the others' ends were late, the newest ones counting most.
    """

    late: float = 0.0
    _asked: int = 0

    def lets_others_help(self) -> bool:
        """Not while the cores are taken, but for a try now and then."""
        self._asked += 1
        return self.late < MUCH or self._asked % TRIED_EVERY == 0

    def note(self, own_s: float, waited_s: float) -> None:
        """The caller's pieces took so long, and then it waited for the others' last."""
        is_late = waited_s > max(LATE_S, own_s / 4)
        self.late += (is_late - self.late) * NEWEST


class ComputeThreads:
    """``count`` of them, the caller's among them: with one all is as without any.

    The others are started when there is first something to share out. They sleep until there is
    more, are not waited for where they come too late, and are left alone where the machine has no
    core for them.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._queue: SimpleQueue[Shared | None] = SimpleQueue()
        self._others: list[threading.Thread] = []
        self._rooms: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self._crowding = Crowding()

    def share_out(self, pieces: int, work: Work) -> None:
        """Return when ``work`` has been done on each of so many pieces; raises what one raised."""
        self.share_out_each([Share(pieces, work, raised)])

    def share_out_each(self, shares: Iterable[Share]) -> None:
        """Return when all are done, and told. Each is begun as ``shares`` gives it."""
        begun: list[tuple[Share, Shared]] = []
        helped = self.count > 1 and self._crowding.lets_others_help()
        self._forget_earlier()
        began_s = time.monotonic()
        try:
            for share in shares:
                shared = Shared(share.work, iter(range(share.pieces)))
                if helped:  # the caller itself begins with the first piece of all
                    self._call_others(shared, share.pieces - (not begun))
                begun.append((share, shared))
        finally:
            for _, shared in begun:
                shared.take_part(0)
            own_s = time.monotonic() - began_s
            errors = [first_of([shared.done.get() for _ in range(s.pieces)]) for s, shared in begun]
            if helped and sum(share.pieces for share, _ in begun) > 1:
                self._crowding.note(own_s, time.monotonic() - began_s - own_s)
            for (share, _), error in zip(begun, errors, strict=True):
                share.ended(error)

    def _call_others(self, shared: Shared, most: int) -> None:
        if most > 0:
            self._start()
            for _ in self._others[:most]:
                self._queue.put(shared)

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
            while not self._queue.empty():
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


def first_of(errors: Sequence[Exception | None]) -> Exception | None:
    return next((error for error in errors if error is not None), None)
