"""What the daemon's children say: each word goes to the part of the node that acts on it."""

from __future__ import annotations

from dataclasses import dataclass

from elasticps.core.records import ServerRecord
from elasticps.daemon.access import is_of_child, is_of_unit
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.life import Life
from elasticps.daemon.making import Making
from elasticps.daemon.metrics.measured import Measured
from elasticps.daemon.recordings import Recordings
from elasticps.daemon.reports import Reports
from elasticps.daemon.shard_servers import ShardServers
from elasticps.daemon.supervisor import Supervisor
from elasticps.daemon.unit_child import main_process
from elasticps.daemon.view import ClusterView
from elasticps.daemon.workers import Workers
from elasticps.wire.control_messages import (
    Access,
    Describe,
    Finished,
    PluginsMade,
    Prefer,
    Progress,
    Promises,
    RecordedSpans,
    Retire,
    ServerLoad,
    Welcome,
)
from elasticps.wire.peer_process import PeerProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChildren:
    """The shard servers and workers of one node (links.Children)."""

    config: DaemonConfig
    view: ClusterView
    supervisor: Supervisor
    servers: ShardServers
    workers: Workers
    measured: Measured
    recordings: Recordings
    making: Making
    reports: Reports

    # -- shard servers --------------------------------------------------------------------------

    def server_said_hello(self, record: ServerRecord, process: PeerProcess) -> str | None:
        """The name of the child that it is; None: it was not started here."""
        for name, child in self.servers.children.items():
            if self._is_child(name, process):
                child.said_hello(record)
                self.measured.tallies.server_starts += 1
                return name
        return None

    def server_gone(self, child: str) -> None:
        self.recordings.gone(child)
        server = self.servers.children[child]
        if server.record is not None:
            self.measured.tallies.server_ended(server.record.server)
        server.gone()

    def promised(self, child: str, promises: Promises) -> None:
        self.reports.promised(child, promises)

    def loaded(self, child: str, load: ServerLoad) -> None:
        server = self.servers.children[child]
        server.heard(load)
        if server.record is not None:
            self.measured.served(server.record.server, load, self.view)

    def plugins_made(self, said: PluginsMade) -> None:
        self.making.answered(said)

    def welcome(self, uid: str, process: PeerProcess) -> Welcome | None:
        life = self.workers.lives.get(uid)
        if life is None or not self._is_worker(life, process):
            return None
        return self.workers.welcome(uid, self.config.cluster)

    def access_of(self, uid: str) -> Access | None:
        return self.workers.access(uid)

    def _is_worker(self, life: Life, process: PeerProcess) -> bool:
        if self.config.worker_units:  # the child stands for it alone
            return is_of_unit(process, main_process(life.worker, self.config.runtime_dir))
        return self._is_child(life.child, process)

    def _is_child(self, name: str, process: PeerProcess) -> bool:
        """By the kernel's word, for whoever may open the socket may say any name."""
        return any(
            child.name == name and is_of_child(process, child.pid)
            for child in self.supervisor.snapshot()
        )

    def retired(self, uid: str) -> Retire | None:
        life = self.workers.lives.get(uid)
        return life.retire if life is not None else None

    def described(self, uid: str, describe: Describe) -> None:
        life = self.workers.lives.get(uid)
        if life is not None:
            self.reports.described(life, describe)

    def recorded(self, uid: str, part: RecordedSpans) -> None:
        self.recordings.recorded(uid, part)

    def progressed(self, uid: str, progress: Progress) -> None:
        life = self.workers.lives.get(uid)
        if life is not None:
            life.progressed(progress)
            self.measured.tallies.trained(life.job_name, life.job, uid, progress)
            self.reports.progressed(life)

    def preferred(self, uid: str, prefer: Prefer) -> None:
        life = self.workers.lives.get(uid)
        if life is not None:
            self.reports.preferred(life, prefer)

    def finished(self, uid: str, finished: Finished) -> None:
        life = self.workers.lives.get(uid)
        if life is not None:
            life.finished = finished

    def worker_gone(self, uid: str) -> None:
        self.measured.tallies.worker_ended(uid)
        self.recordings.gone(uid)
        life = self.workers.lives.get(uid)
        if life is not None:
            life.hung_up.set()
            self.reports.preferred(life, Prefer(()))
