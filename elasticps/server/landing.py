"""Memory that payloads land in, used again: fresh pages cost as much as what lands in them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

STEP_BYTES = 128 << 10
"""Pieces are whole multiples of it. A payload of less has memory of its own, which is at hand."""

Piece = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(slots=True)
class _Pieces:
    """Those of one size. ``idle``: the least that was free since the last ``trim``."""

    free: list[Piece] = field(default_factory=list)
    idle: int = 0
    used: bool = True


class Landing:
    """Pieces that come back when the last tensor or view in them is gone.

    ``trim``, called from time to time, lets go of those that nobody has needed since the last time;
    so no more is held than what was on its way at once.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, _Pieces] = {}

    @property
    def nbytes_free(self) -> int:
        return sum(piece.nbytes for pieces in self._sizes.values() for piece in pieces.free)

    def take(self, nbytes: int) -> torch.Tensor:
        """``nbytes`` of uint8, whatever is in them."""
        if nbytes < STEP_BYTES:
            return torch.empty(nbytes, dtype=torch.uint8)
        size = -(-nbytes // STEP_BYTES) * STEP_BYTES
        pieces = self._sizes.setdefault(size, _Pieces())
        piece = pieces.free.pop() if pieces.free else np.empty(size, dtype=np.uint8)
        pieces.idle, pieces.used = min(pieces.idle, len(pieces.free)), True
        lent = piece[:nbytes]  # torch holds this one for as long as it uses the memory
        weakref.finalize(lent, pieces.free.append, piece).atexit = False
        return torch.from_numpy(lent)

    def trim(self) -> None:
        """Let go of what has lain idle since the last call."""
        for size, pieces in list(self._sizes.items()):
            if not pieces.used:
                del self._sizes[size]
            del pieces.free[: pieces.idle]
            pieces.idle, pieces.used = len(pieces.free), False
