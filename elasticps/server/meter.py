"""What one block costs its server, as rates over the last seconds; how far its backups lag."""

from __future__ import annotations

from math import exp

from elasticps.core.proposal import Load
from elasticps.core.replication import Replication, Role

SMOOTHED_OVER_S = 10.0


class Meter:
    """Counts, and their exponentially weighted means. Times are of one monotonic clock."""

    def __init__(self, now_s: float) -> None:
        self.nbytes = 0
        self.apply_s = 0.0
        self._began_s = self._looked_s = now_s
        self._seen = (0, 0.0)
        self._means = (0.0, 0.0)
        self._weight = 0.0

    def load(self, now_s: float) -> Load:
        """The rates as of now; what was counted since the last look enters them."""
        passed_s = now_s - self._looked_s
        if passed_s > 0:
            old = exp(-passed_s / SMOOTHED_OVER_S)
            new = (1 - old) / passed_s
            (bytes_mean, apply_mean), (seen_bytes, seen_apply_s) = self._means, self._seen
            self._means = (
                bytes_mean * old + (self.nbytes - seen_bytes) * new,
                apply_mean * old + (self.apply_s - seen_apply_s) * new,
            )
            self._seen, self._looked_s = (self.nbytes, self.apply_s), now_s
            # Means that began at 0 are too low by this until they have seen enough.
            self._weight = self._weight * old + (1 - old)
        weight = self._weight or 1.0
        return Load(
            bytes_per_s=self._means[0] / weight,
            apply_s_per_s=self._means[1] / weight,
            measured_s=now_s - self._began_s,
        )


class Lag:
    """For how long a primary has had ops that not every counted replica holds.

    Looked at now and then: it is no longer than it says by more than the time between two looks.
    """

    def __init__(self) -> None:
        self._mark = 0
        self._since_s = 0.0

    def look(self, replication: Replication, now_s: float) -> tuple[int, float]:
        """How many ops it lags, and for how many seconds; nothing for one that does not lead."""
        if replication.role is not Role.PRIMARY:
            self._mark = 0
            return 0, 0.0
        if replication.durable >= self._mark:
            self._mark, self._since_s = replication.version, now_s
        return replication.version - replication.durable, now_s - self._since_s
