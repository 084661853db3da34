"""How much memory a worker's process may still take."""

from __future__ import annotations

import resource
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def room_bytes() -> float:
    """The least of what its limits leave: address space, cgroup (version 2), the machine."""
    return max(0.0, min(_of_address_space(), _of_cgroup(), _of_machine()))


def _of_address_space() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return float(limit - pages * resource.getpagesize())


def _of_cgroup() -> float:
    try:
        line = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        own = CGROUP / line.lstrip("/")
        limit = (own / "memory.max").read_text().strip()
        used = (own / "memory.current").read_text()
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else float(limit) - float(used)


def _of_machine() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return float(rest.split()[0]) * 1024
    return float("inf")
