"""Which machine this is: whether a Unix socket of one process can be reached by another."""

from __future__ import annotations

import os
from pathlib import Path


def this_machine() -> str:
    """What two processes share exactly when a Unix socket of one can be reached by the other."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    mounts = os.stat("/proc/self/ns/mnt").st_ino  # noqa: PTH116 - the link's target is the point
    return f"{boot}:{mounts}"
