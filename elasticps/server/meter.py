"""What one block costs its server, as rates over the last seconds."""

from __future__ import annotations

from math import exp

from elasticps.core.proposal import Load

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
            counts = (self.nbytes, self.apply_s)
            rates = [(now - seen) / passed_s for now, seen in zip(counts, self._seen, strict=True)]
            nbytes, apply_s = (
                mean * old + rate * (1 - old) for mean, rate in zip(self._means, rates, strict=True)
            )
            self._means, self._seen, self._looked_s = (nbytes, apply_s), counts, now_s
            # Means that began at 0 are too low by this until they have seen enough.
            self._weight = self._weight * old + (1 - old)
        weight = self._weight or 1.0
        return Load(
            bytes_per_s=self._means[0] / weight,
            apply_s_per_s=self._means[1] / weight,
            measured_s=now_s - self._began_s,
        )
