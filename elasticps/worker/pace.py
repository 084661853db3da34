"""How fast a worker's script gets through its samples, as it tells the ledger."""

from __future__ import annotations

from collections import deque
from statistics import median

STEPS = 5
TOLERANCE = 0.1
SETTLED_STEPS = 10
SETTLED_TOLERANCE = 0.02


class Pace:
    """``told``: samples a second, 0.0 while unknown.

    The median of the last steps, so that one odd step moves nothing; and as it was while it is
    about the same, so that what other workers load beforehand stays theirs. About the same is not
    enough for long: of two equal workers one would be lent a tenth more, and waited for in every
    round. So what was told is corrected by the median of more steps, once in so many.

    The first step of a script is not like the others, and does not count.
    """

    def __init__(self) -> None:
        self.told = 0.0
        self._rates: deque[float] = deque(maxlen=SETTLED_STEPS)
        self._since_told = 0
        self._has_begun = False

    def stepped(self, samples: float, seconds: float) -> float:
        """A step's samples, and what the script took for them; returns ``told``."""
        if not self._has_begun:
            self._has_begun = True
        elif samples > 0 and seconds > 0:
            self._rates.append(samples / seconds)
            self._since_told += 1
            self._tell(median(list(self._rates)[-STEPS:]), TOLERANCE)
            if self._since_told >= SETTLED_STEPS:
                self._tell(median(self._rates), SETTLED_TOLERANCE)
                self._since_told = 0
        return self.told

    def _tell(self, now: float, tolerance: float) -> None:
        if abs(now - self.told) > tolerance * self.told:
            self.told, self._since_told = now, 0
