"""All that one daemon has measured and counted so far: what its parts tell, on its loop."""

from __future__ import annotations

import time

from elasticps.core.ids import NodeId, ServerId
from elasticps.daemon.metrics.failovers import Cause, Failovers, Promoted
from elasticps.daemon.metrics.loop_lag import LoopLag
from elasticps.daemon.metrics.tallies import Tallies
from elasticps.daemon.metrics.totals import Buckets
from elasticps.daemon.view import ClusterView
from elasticps.wire.control_messages import ServerLoad

REQUEST_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
FAILOVER_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
HEAL_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Measured:
    """``me`` is the daemon's node. What is told of failovers counts while it leads."""

    def __init__(self, me: NodeId) -> None:
        self.loop_lag = LoopLag()
        self.tallies = Tallies()
        self.failovers = Failovers()
        self.etcd_requests = Buckets(REQUEST_BOUNDS_S)
        self.etcd_failures = 0
        self.etcd_answered_s = time.monotonic()
        self.failovers_by_cause: dict[str, float] = dict.fromkeys(Cause, 0.0)
        self.detect = {cause: Buckets(FAILOVER_BOUNDS_S) for cause in Cause}
        self.promote = {cause: Buckets(FAILOVER_BOUNDS_S) for cause in Cause}
        self.heal = {cause: Buckets(HEAL_BOUNDS_S) for cause in Cause}
        self._me = me

    def leads(self, view: ClusterView) -> bool:
        """As of the view's revision, so that of two daemons never both do."""
        return view.leader == self._me

    def etcd_answered(self, took_s: float) -> None:
        self.etcd_requests.observe(took_s)
        self.etcd_answered_s = time.monotonic()

    def etcd_failed(self) -> None:
        self.etcd_failures += 1

    def served(self, server: ServerId, load: ServerLoad, view: ClusterView) -> None:
        """The shard server's word, once a second; what has ended long ago is let go of as often."""
        self.tallies.served(server, load)
        known = {job.name: job.key for job in view.jobs.values()}
        active = {job.key for job in view.active_jobs}
        self.tallies.forget_ended(known, active, time.monotonic())

    def view_changed(self, view: ClusterView) -> None:
        for event in self.failovers.look(view, time.monotonic()):
            if not self.leads(view):
                continue  # who leads counts it
            if isinstance(event, Promoted):
                self.failovers_by_cause[event.cause] += 1
                self.promote[event.cause].observe(event.after_s)
                if event.detected_s is not None:
                    self.detect[event.cause].observe(event.detected_s)
            else:
                self.heal[event.cause].observe(event.after_s)
