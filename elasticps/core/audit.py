"""Counting pushes so that one loss and one duplicate cannot hide each other.

A tally is a count and the sum, modulo 2^64, of a hash of each sequence number: two tallies are
equal exactly when they saw the same multiset of pushes (but for a 2^-64 chance).
"""

from __future__ import annotations

import msgspec

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """splitmix64's finaliser: a bijection of 64-bit integers that scatters neighbours."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Tally(msgspec.Struct, frozen=True, array_like=True):
    """How many pushes were counted, and the fingerprint of which ones."""

    count: int = 0
    fingerprint: int = 0

    def plus(self, seq: int) -> Tally:
        return Tally(self.count + 1, (self.fingerprint + mix(seq)) & _MASK)


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What an audit of one worker's pushes found."""

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0

    def plus(self, other: Verdict) -> Verdict:
        return Verdict(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.duplicated + other.duplicated,
        )


def compare(acknowledged: Tally, applied: Tally) -> Verdict:
    """Hold what a worker was told against what a block applied of it.

    Equal counts with different fingerprints hide at least one loss and one duplicate.
    """
    lost = max(0, acknowledged.count - applied.count)
    duplicated = max(0, applied.count - acknowledged.count)
    if lost == duplicated == 0 and acknowledged.fingerprint != applied.fingerprint:
        lost = duplicated = 1
    return Verdict(acknowledged.count, lost, duplicated)
