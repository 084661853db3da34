"""Which faults there are, of which class, what each needs, and how often it is drawn."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from tests.chaos import (
    faults_disk,
    faults_etcd,
    faults_machine,
    faults_network,
    faults_process,
    strace,
)
from tests.chaos.scene import Fault


class Need(Enum):
    NAMESPACES = "namespaces of its own, for networks and mounts, which root can make"
    FAKETIME = "libfaketime, which is not installed"
    STRACE = "strace, which is not installed or may not attach to a process"


def found_here(faketime: Path | None, *, namespaces: bool) -> set[Need]:
    """Of all that faults need what this machine has."""
    there = {
        Need.NAMESPACES: namespaces,
        Need.FAKETIME: faketime is not None,
        Need.STRACE: strace.can_attach(),
    }
    return {need for need in Need if there[need]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``weight``: how often it comes in one pass through all. ``needs``: what not every
    machine has. ``short``: is one of the short form's.
    """

    fault: Fault
    kind: str
    weight: int = 1
    needs: Need | None = None
    short: bool = False

    @property
    def name(self) -> str:
        return getattr(self.fault, "__name__", "")


def _rows(kind: str, *faults: Fault, weight: int = 1, needs: Need | None = None) -> list[Row]:
    short = {
        faults_process.kill_primary,
        faults_process.kill_node,
        faults_process.kill_leader,
        faults_process.stop_node,
        faults_process.kill_migration_source,
        faults_network.isolate,
        faults_network.kill_unanswered,
        faults_network.kill_unreplicated,
        faults_network.cut_etcd,
        faults_machine.kill_etcd,
        faults_machine.compact_etcd,
        faults_disk.fill_disk,
        faults_disk.fail_fsync,
    }
    return [
        Row(fault=fault, kind=kind, weight=weight, needs=needs, short=fault in short)
        for fault in faults
    ]


CATALOGUE = [
    # So many that half an hour kills 100 times also where a fault takes 11 seconds.
    *_rows("process", faults_process.kill_primary, weight=16),
    *_rows("process", faults_process.kill_node, weight=8),
    *_rows("process", faults_process.kill_node_for_good, weight=6),
    *_rows("process", faults_process.kill_backup, faults_process.kill_together, weight=4),
    *_rows("process", faults_process.kill_ahead, weight=3),
    *_rows(
        "process",
        faults_process.kill_daemon,
        faults_process.kill_leader,
        faults_process.kill_server_of_leader,
        faults_process.kill_worker,
        faults_process.kill_migration_source,
        faults_process.kill_migration_target,
        faults_process.join_and_leave,
        faults_process.stop_node,
        faults_process.stop_daemon,
        faults_process.stop_server,
        faults_process.stop_worker,
    ),
    *_rows(
        "network",
        faults_network.isolate,
        faults_network.kill_unanswered,
        faults_network.kill_unreplicated,
        faults_network.one_way,
        faults_network.cut_data,
        faults_network.blink,
        faults_network.slow_network,
        needs=Need.NAMESPACES,
    ),
    *_rows(
        "network",
        faults_network.cut_etcd,
        faults_network.deaf_to_etcd,
        faults_network.reset_etcd_links,
        faults_network.late_etcd,
        faults_network.slow_etcd,
        faults_network.sliced_etcd,
    ),
    *_rows(
        "etcd",
        faults_machine.kill_etcd,
        faults_machine.pause_etcd,
        faults_machine.pause_etcd_past_leases,
        faults_machine.compact_etcd,
        faults_process.revoke_lease,
        faults_etcd.fill_etcd,
    ),
    *_rows("etcd", faults_etcd.slow_etcd_disk, needs=Need.STRACE),
    *_rows("disk", faults_disk.fill_disk, needs=Need.NAMESPACES),
    *_rows(
        "disk",
        faults_disk.fail_fsync,
        faults_disk.slow_disk,
        faults_disk.kill_writer,
        needs=Need.STRACE,
    ),
    *_rows("resources", faults_machine.hog_cpu, faults_machine.starve_descriptors),
    *_rows("clock", faults_machine.jump_clock, needs=Need.FAKETIME),
]


def chosen(have: Collection[Need], *, short: bool, only: Iterable[str]) -> list[Row]:
    """The faults that can be caused here, of the short form or all, or those named."""
    names = set(only)
    unknown = names - {row.name for row in CATALOGUE}
    if unknown:
        raise SystemExit(f"no such faults: {', '.join(sorted(unknown))}")
    rows = [row for row in CATALOGUE if row.needs is None or row.needs in have]
    rows = [row for row in rows if (row.name in names if names else row.short or not short)]
    return [replace(row, weight=1) for row in rows] if short else rows


def left_out(have: Collection[Need]) -> list[str]:
    """Those that cannot be caused here, and why."""
    rows = [row for row in CATALOGUE if row.needs is not None and row.needs not in have]
    return [f"{row.name}: needs {row.needs.value}" for row in rows if row.needs]
