"""A file system of a few megabytes, and filling it up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "32m"


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Within the block the directory is one of its own. Only in a mount namespace of our own."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def full(place: Path, spare_bytes: int) -> Iterator[None]:
    """Within the block the file system of ``place`` has room for ``spare_bytes`` and no more."""
    filler = place / "filler"
    try:
        with filler.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, free_bytes(place) - spare_bytes)
        yield
    finally:
        filler.unlink()


def free_bytes(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
