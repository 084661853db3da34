"""What this machine does, as its kernel counts it: processors, memory, network."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

PROC = Path("/proc")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the machine's start, at ``at_s`` of its monotonic clock; rates are differences.

    ``cpu_busy_s`` are seconds of all ``cpus`` together. Bytes received and sent are those of all
    network interfaces but loopback. None where the kernel does not tell.
    """

    at_s: float
    cpus: int
    load_1m: float | None = None
    cpu_busy_s: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None


def usage(proc: Path = PROC) -> Usage:
    """As of now; what cannot be read is left out."""
    memory, available = _memory(_text(proc / "meminfo"))
    received, sent = _network(_text(proc / "net" / "dev"))
    return Usage(
        at_s=time.monotonic(),
        cpus=os.cpu_count() or 1,
        load_1m=_load(),
        cpu_busy_s=_busy_s(_text(proc / "stat")),
        memory_used_bytes=None if memory is None or available is None else memory - available,
        memory_bytes=memory,
        received_bytes=received,
        sent_bytes=sent,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _busy_s(stat: str) -> float | None:
    """Of the line "cpu user nice system idle iowait irq softirq steal ...", in clock ticks."""
    name, *ticks = stat.partition("\n")[0].split()[:9] or [""]
    if name != "cpu" or len(ticks) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _memory(meminfo: str) -> tuple[int | None, int | None]:
    """In all, and available, in bytes."""
    kib = {row.partition(":")[0]: row.split()[1] for row in meminfo.splitlines() if ":" in row}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    return (
        None if total is None else int(total) << 10,
        None if available is None else int(available) << 10,
    )


def _network(dev: str) -> tuple[int | None, int | None]:
    """Bytes received and sent: the first and the ninth number of each interface's row."""
    rows = [row.partition(":") for row in dev.splitlines() if ":" in row]
    counts = [numbers.split() for name, _, numbers in rows if name.strip() != "lo"]
    if not rows:
        return None, None
    return sum(int(each[0]) for each in counts), sum(int(each[8]) for each in counts)
