"""What a machine does, as its kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path

from elasticps.daemon.usage import usage

STAT = "cpu  100 10 20 1000 50 1 2 3 4 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n"
DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo: 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0
  eth0: 100 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
  eth1: 20 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0
"""


def test_counts_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for name, text in (("stat", STAT), ("meminfo", MEMINFO), ("net/dev", DEV)):
        (tmp_path / name).write_text(text)
    found = usage(tmp_path)
    assert found.cpu_busy_s == (100 + 10 + 20 + 1 + 2 + 3) / os.sysconf("SC_CLK_TCK")
    assert (found.memory_bytes, found.memory_used_bytes) == (1000 << 10, 600 << 10)
    assert (found.received_bytes, found.sent_bytes) == (120, 12)


def test_what_the_kernel_does_not_tell_is_left_out(tmp_path: Path) -> None:
    found = usage(tmp_path)
    assert (found.cpu_busy_s, found.memory_bytes, found.received_bytes) == (None, None, None)
    assert found.cpus >= 1


def test_this_machine_tells() -> None:
    earlier, later = usage(), usage()
    assert later.at_s >= earlier.at_s
    assert (later.cpu_busy_s or 0) >= (earlier.cpu_busy_s or 0)
