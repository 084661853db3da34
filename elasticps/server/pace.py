"""When the part of a checkpoint's work is done that no step waits for: mostly between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_S = 0.02
"""Without a worker's request for so long, the workers compute, and the server has time."""
SCHEDULE = 0.5
"""By when of the time to the next checkpoint all is to be done, however busy the server is."""


class Pace:
    """The schedule of one job's checkpoints on one server.

    While workers exchange nothing, the next piece may be done at once. While they do, it waits for
    the end of that, unless the checkpoint is behind an even schedule: so it is done well before the
    next one is due. That is taken to be as long after this one as this is after the one before.
    Where somebody waits for the checkpoint, nothing of it waits.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._target_s = 0.0
        self._asked_s = self._began_s
        self._pieces = 0
        self._done = 0
        self._hurries = False

    def begin(self) -> None:
        """A checkpoint begins."""
        now_s = self._clock()
        self._target_s = (now_s - self._began_s) * SCHEDULE
        self._began_s = now_s
        self._pieces = self._done = 0
        self._hurries = False

    def hurry(self) -> None:
        """Somebody waits for the checkpoint under way."""
        self._hurries = True

    def add(self) -> None:
        """It has one more piece."""
        self._pieces += 1

    def asked(self) -> None:
        """A worker has asked for something in a step."""
        self._asked_s = self._clock()

    def wait_s(self) -> float:
        """How long to wait before this is asked again; 0: the next piece may be done now."""
        now_s = self._clock()
        quiet_s = self._asked_s + QUIET_S - now_s
        due_s = self._target_s * self._done / max(1, self._pieces)
        if self._hurries or quiet_s <= 0 or now_s - self._began_s >= due_s:
            self._done += 1
            return 0.0
        return quiet_s
