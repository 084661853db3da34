"""What one thread of a server frees another can take: there is one heap for all of them."""

from __future__ import annotations

import ctypes
import os

M_ARENA_MAX = -8
"""glibc's ``malloc.h``."""


def share_one_heap() -> None:
    """For this process. Left alone where its environment says otherwise, or there is no glibc.

    By itself glibc gives each thread a heap, and each keeps up to twice the largest tensor that was
    freed in it: a server then has a fifth more than its blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, 1)
