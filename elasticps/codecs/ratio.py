"""The option of codecs that keep a part of a block."""

from __future__ import annotations


def check_ratio(ratio: float) -> float:
    """An option's value; raises ValueError."""
    if not (isinstance(ratio, int | float) and 0 < ratio <= 1):
        raise ValueError(f"ratio {ratio} (limit: above 0, at most 1)")
    return float(ratio)


def kept_of(numel: int, ratio: float) -> int:
    """How many of ``numel`` numbers are kept, at least one."""
    return max(1, int(ratio * numel))
