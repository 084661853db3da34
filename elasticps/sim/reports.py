"""What a simulated daemon's children say that must reach etcd: ``daemon/reports.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elasticps.core.affinity import Span, joined
from elasticps.core.records import CaughtUpRow, ReportRecord
from elasticps.sim.clock import MS
from elasticps.sim.etcd import Put
from elasticps.sim.server import Server

if TYPE_CHECKING:
    from elasticps.sim.daemon import Daemon

RETRY = 15 * MS
NOTHING = ReportRecord(())


class Reports:
    """Writes the newest promises and wishes, one write at a time."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._rows: tuple[CaughtUpRow, ...] = ()
        self._wishes: dict[str, tuple[Span, ...]] = {}
        self._reported = NOTHING
        self._reporting = False

    def registered(self) -> None:
        """Under a new lease nothing is reported yet."""
        self._reported = NOTHING
        self._write()

    def server_gone(self) -> None:
        self._rows = ()

    def workers_gone(self) -> None:
        self._wishes.clear()

    def promised(self, server: Server, rows: tuple[CaughtUpRow, ...]) -> None:
        if server is self._daemon.server:
            self._rows = rows
            self._write()

    def preferred(self, uid: str, blocks: tuple[Span, ...]) -> None:
        """A worker's wishes replace those that it had; one that is gone has none."""
        self._wishes[uid] = blocks if uid in self._daemon.workers else ()
        self._write()

    def _write(self) -> None:
        """Write the newest promises and wishes under the node's lease."""
        wishes = joined(span for each in self._wishes.values() for span in each)
        daemon = self._daemon
        lease, report = daemon.lease, ReportRecord(self._rows, wishes)
        if not lease or self._reporting or report == self._reported:
            return
        self._reporting = True
        key = f"report/{daemon.node}"

        def done(written: Any) -> None:
            self._reporting = False
            if written is not None and lease == daemon.lease:
                self._reported = report
            if written is not None or lease != daemon.lease:
                self._write()

        def timed_out() -> None:
            self._reporting = False
            daemon.later(RETRY, self._write)

        put = Put(key, report, lease)
        daemon.etcd.request(daemon, lambda etcd: etcd.txn([], [put]), done, timed_out)
