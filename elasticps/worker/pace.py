"""How fast a worker's script gets through its samples, as it tells the ledger."""

from __future__ import annotations

from collections import deque
from statistics import median

STEPS = 5
TOLERANCE = 0.1


class Pace:
    """``told``: samples a second, 0.0 while unknown.

    The median of the last steps, so that one odd step moves nothing; and as it was while it is
    about the same, so that what other workers load beforehand stays theirs. The first step of a
    script is not like the others, and does not count.
    """

    def __init__(self) -> None:
        self.told = 0.0
        self._rates: deque[float] = deque(maxlen=STEPS)
        self._has_begun = False

    def stepped(self, samples: float, seconds: float) -> float:
        """A step's samples, and what the script took for them; returns ``told``."""
        if not self._has_begun:
            self._has_begun = True
        elif samples > 0 and seconds > 0:
            self._rates.append(samples / seconds)
            now = median(self._rates)
            if abs(now - self.told) > TOLERANCE * self.told:
                self.told = now
        return self.told
