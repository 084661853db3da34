"""What a tree of processes has used: CPU seconds and resident memory, out of /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """``root`` and all that it has started, and they."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def cpu_s(pids: list[int]) -> float:
    """CPU seconds, user's and system's, that living processes of these have taken so far."""
    return sum(_cpu_s(pid) for pid in pids)


def machine_cpu_s() -> tuple[float, float]:
    """CPU seconds that all cores were busy, and those of them that this machine was not given."""
    user, nice, system, _, _, irq, soft, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + soft) * TICK_S, steal * TICK_S


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """Of one process: ``VmRSS`` is now, ``VmHWM`` the most so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no {field}")


def own_bytes(pid: int) -> int:
    """Resident memory that is the process's own: anonymous pages, and the memory files (memfd)
    that it holds open. What it has only mapped of others' files is theirs."""
    return resident_bytes(pid, "RssAnon") + _memory_files_bytes(pid)


def peak_own_bytes(pid: int) -> int:
    """The most so far, where it has mapped all that it ever had of others' files by now, and of
    files on disk as much as at its peak."""
    others = resident_bytes(pid) - resident_bytes(pid, "RssAnon")
    return resident_bytes(pid, "VmHWM") - others + _memory_files_bytes(pid)


def _memory_files_bytes(pid: int) -> int:
    nbytes: dict[int, int] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(link.readlink()).startswith("/memfd:"):
                status = link.stat()
                nbytes[status.st_ino] = status.st_blocks * 512
    return sum(nbytes.values())


def command(pid: int) -> str:
    """Its command line; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _cpu_s(pid: int) -> float:
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _stat(pid: int) -> list[str]:
    """The fields behind the command's name, which may hold anything: state, parent and on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
