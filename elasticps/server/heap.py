"""Memory of blocks that are gone goes back to the system, and leaves no holes in the heap."""

from __future__ import annotations

import ctypes
import os

M_MMAP_THRESHOLD = -3
"""glibc's ``malloc.h``."""
OWN_PAGES_BYTES = 1 << 20
"""An allocation of this size or more has pages of its own."""


def give_large_their_own_pages() -> None:
    """For this process. Left alone where its environment says otherwise, or there is no glibc.

    By itself glibc takes what was freed once as a sign to take the next from the heap, up to
    32 MiB: a server then keeps a fifth more than its blocks, in holes between them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(M_MMAP_THRESHOLD, OWN_PAGES_BYTES)
