"""One daemon, from its start to its leaving: the parts wired together, and little decided here."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from importlib.metadata import version

from elasticps.core.ids import JobKey, NodeId
from elasticps.core.proposal import Placed
from elasticps.core.records import NodeRecord
from elasticps.daemon.access import NodeAccess
from elasticps.daemon.certificate_watch import warn_of_end
from elasticps.daemon.children import NodeChildren
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.departure import Departure
from elasticps.daemon.failure_detector import FailureDetector
from elasticps.daemon.leader import Leader
from elasticps.daemon.links import Links
from elasticps.daemon.log_files import LogBuffer
from elasticps.daemon.making import Making
from elasticps.daemon.membership import Membership
from elasticps.daemon.metrics.measured import Measured
from elasticps.daemon.notify import Notifier
from elasticps.daemon.readiness import Condition, Readiness
from elasticps.daemon.recordings import Recordings
from elasticps.daemon.rehearsals import Rehearsals
from elasticps.daemon.reload import Reload
from elasticps.daemon.reports import Reports
from elasticps.daemon.self_check import SelfCheck
from elasticps.daemon.shard_servers import ShardServers
from elasticps.daemon.supervisor import Supervisor
from elasticps.daemon.timeline import Timeline
from elasticps.daemon.view import ClusterView
from elasticps.daemon.workers import Workers
from elasticps.errors import StoreError, StoreRolledBack
from elasticps.security.passes import RENEWED_AFTER_S
from elasticps.store import Keys, Lease, Store, check_format, watch_prefix
from elasticps.wire.address import Address
from elasticps.wire.control_messages import Control
from elasticps.wire.listener import listen
from elasticps.wire.machine import this_machine

log = logging.getLogger(__name__)

RETRY_S = 0.3
LOG_LINES, LOG_BYTES = 50_000, 16 << 20
"""What followers of the workers' output may lag behind by before lines are left out."""


class Node:
    """The daemon's parts. ``run`` is its life.

    ``reread`` reads the configuration anew, at SIGHUP.
    """

    def __init__(
        self,
        config: DaemonConfig,
        store: Store,
        notifier: Notifier,
        reread: Callable[[], DaemonConfig],
    ) -> None:
        self.config = config
        self.store = store
        self.name = NodeId(config.node)
        self.keys = Keys(config.cluster)
        self.view = ClusterView(self.keys)
        self.measured = Measured(self.name)
        self.logs = LogBuffer(max_lines=LOG_LINES, max_bytes=LOG_BYTES)
        self.http_url = ""
        self.machine = this_machine()
        self.supervisor = Supervisor(config.log_dir)
        self.access = NodeAccess.of(config)
        control = Address.unix(config.runtime_dir / "control.sock")
        self.servers = ShardServers(config, control, self._servers_changed)
        self._leaving = False
        self._incarnation = secrets.token_hex(4)
        self._notifier = notifier
        self._reload = Reload(config, reread, self._reconfigured, notifier)
        self._control = control
        self._changed = asyncio.Condition()
        self._nudge = asyncio.Event()
        self._rehearsals = Rehearsals(lambda: self._links.sync())
        self.recordings = Recordings(self._tell_worker, self._tell_servers)
        self.making = Making(self._tell_servers)
        self._reports = Reports(store, self.view, self.name, self._tell_worker)
        self.workers = Workers(
            config,
            store,
            self.view,
            self.supervisor,
            self.logs,
            str(control),
            self._tell_changed,
            self.access,
        )
        children = NodeChildren(
            config=config,
            view=self.view,
            supervisor=self.supervisor,
            servers=self.servers,
            workers=self.workers,
            measured=self.measured,
            recordings=self.recordings,
            making=self.making,
            reports=self._reports,
        )
        self._links = Links(self.view, self.machine, children, self._rehearsals)
        self._leader = Leader(
            store, self.view, self._changed, config.lost_after_s, self.access, config.kept_jobs
        )
        self.membership = Membership(
            config,
            store,
            self.keys,
            self._leader,
            self._node_record,
            self._seen,
            self._links.serve_until,
            self._on_membership,
        )
        self._detector = FailureDetector(
            store,
            self.view,
            self._changed,
            self.name,
            self.machine,
            self.access,
            self.measured.failovers.signs,
        )
        self.timeline = Timeline(self.view, self._detector.found_dead)
        self.departure = Departure(
            store, self.view, self._changed, self.name, config.drain_timeout_s, self._is_empty
        )
        self.readiness = Readiness(
            (
                Condition(reason="not registered in the cluster", holds=self._is_registered),
                Condition(reason="draining or leaving", holds=self._is_staying),
            ),
            lambda: self.measured.etcd_answered_s,
            silence_limit_s=config.lease_ttl_s * 2 / 3,  # it is asked every third of it
        )
        store.endpoints.on_answer = self.measured.etcd_answered
        store.endpoints.on_failure = self.measured.etcd_failed

    # -- life -----------------------------------------------------------------------------------

    async def run(self, serve_http: ServeHttp) -> int:
        """Be a node until told to leave; returns the process's exit code.

        Raises StoreRolledBack when etcd has gone back in its history.
        """
        self.readiness.look()
        self.measured.loop_lag.start()
        await check_format(self.store, self.keys)
        await self.departure.unmark()
        self.departure.ask_on_signals()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        async with AsyncExitStack() as stack:
            stack.callback(self.measured.loop_lag.stop)
            self.http_url = await stack.enter_async_context(serve_http(self))
            feeding = asyncio.create_task(self._feed_watchdog(), name="watchdog")
            stack.callback(feeding.cancel)
            await stack.enter_async_context(self.supervisor)
            shared = self.config.worker_units
            await stack.enter_async_context(
                listen(
                    self._control, self._links.on_connect, on_error=self._links.lost, shared=shared
                )
            )
            return await self._live()

    async def _live(self) -> int:
        code = 1
        try:
            async with asyncio.TaskGroup() as tasks:
                self.servers.start(self.supervisor, tasks)
                self.workers.start(tasks)
                tasks.create_task(self._mirror(), name="mirror")
                tasks.create_task(self._rehearsals.run(), name="rehearsals")
                member = tasks.create_task(self.membership.run(), name="membership")
                tasks.create_task(self._detector.run(), name="failure detector")
                tasks.create_task(self._reconcile(), name="workers")
                tasks.create_task(self._reports.run(), name="reports")
                tasks.create_task(self._renew_access(), name="passes")
                if self.config.security is not None:
                    cert = self.config.security.tls.cert
                    tasks.create_task(warn_of_end(cert), name="certificate")
                tasks.create_task(self._end_with_etcds_history(), name="etcd's history")
                code = await self.departure.wait(lambda: self.membership.joined)
                self._notifier.stopping()
                member.cancel()
                await asyncio.wait({member})
                # After the registration is gone, or the leader would give blocks back to this node.
                await self.departure.unmark()
                raise _Left
        except* _Left:
            log.info("node=%s left, exit code %d", self.name, code)
        except* StoreRolledBack as errors:
            # Told before the children are ended, which takes a while.
            log.error("node=%s ends: %s", self.name, errors.exceptions[0])
            self._notifier.status(str(errors.exceptions[0]))
            raise
        finally:
            self._leaving = True
        return code

    async def _end_with_etcds_history(self) -> None:
        """Whoever meets it first: nobody here goes on with an etcd that went back."""
        raise await self.store.rolled_back()

    async def _mirror(self) -> None:
        async with aclosing(watch_prefix(self.store, self.keys.root)) as batches:
            async for batch in batches:
                self.view.apply(batch)
                self.measured.view_changed(self.view)
                self.readiness.look()
                self.timeline.look()
                self._links.sync()
                await self._tell_changed()

    async def _reconcile(self) -> None:
        """Keep the workers as the leader wants them."""
        while True:
            self._nudge.clear()
            try:
                again_s = await self.workers.reconcile(
                    self.membership.lease, self._links.tell_worker
                )
            except StoreError as error:
                log.warning("workers wait for etcd: %s", error)
                again_s = RETRY_S
            try:
                async with asyncio.timeout(again_s):
                    await self._nudge.wait()
            except TimeoutError:
                continue

    async def _feed_watchdog(self) -> None:
        """From this loop, so that one which hangs does not; each time only if all is well.

        Until the children have ended too: meanwhile systemd bounds the stop, and no check does.
        """
        period_s = self._notifier.watchdog_period_s
        if period_s is None:
            return
        async with SelfCheck(self.http_url, self._control) as check:
            while True:
                # Half of what is allowed for an answer, a quarter between two questions.
                fault = await check.fault(period_s)
                if fault is None or self._leaving:
                    self._notifier.watchdog()
                else:
                    log.error("the watchdog is not fed: %s", fault)
                await asyncio.sleep(period_s / 2)

    def _on_hangup(self) -> None:
        if not self.membership.joined:
            log.warning("no reload before the node is registered")
            return
        self._notifier.ready(self._reload.now())

    def _reconfigured(self, config: DaemonConfig) -> None:
        """These settings are in force from now on; the others are those of the start."""
        self.config = config
        self.workers.reconfigured(config)
        self.departure.drain_timeout_s = config.drain_timeout_s
        self._leader.kept_jobs = config.kept_jobs
        logging.getLogger().setLevel(config.log_level.upper())
        self.membership.rewritten.set()

    async def _renew_access(self) -> None:
        while self.access is not None:
            await asyncio.sleep(RENEWED_AFTER_S)
            self._links.renew_access()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds; it is looked at whenever the view changes."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(condition()))

    async def _seen(self, revision: int) -> None:
        await self.until(lambda: self.view.revision >= revision)

    async def _tell_changed(self) -> None:
        self._nudge.set()
        async with self._changed:
            self._changed.notify_all()

    @property
    def placed(self) -> Mapping[JobKey, Placed]:
        """What the placements of jobs said last; known while this node leads."""
        return self._leader.placements.placed

    def _is_empty(self) -> bool:
        return not self.workers.lives and self.view.holds_nothing(self.name)

    def _is_registered(self) -> bool:
        lease = self.membership.lease
        return lease is not None and time.monotonic() < lease.deadline

    def _is_staying(self) -> bool:
        return not (self._leaving or self.departure.asked or self.name in self.view.drains)

    async def _node_record(self) -> NodeRecord:
        """This node's registration; the first one waits for the shard servers to listen."""
        await self.servers.listening()
        return NodeRecord(
            node=self.name,
            incarnation=self._incarnation,
            machine=self.machine,
            http=self.http_url,
            version=version("elasticps"),
            weight=self.config.weight,
            zone=self.config.zone,
            labels=dict(self.config.labels),
            worker_slots=self.config.worker_slots,
            servers=self.servers.records,
            server_ends=self.servers.ends,
        )

    async def _on_membership(self, lease: Lease | None) -> None:
        self._reports.under(lease)
        self.readiness.look()
        if lease is not None:
            self._notifier.ready(f"node {self.name} of cluster {self.config.cluster}")
        else:
            self._notifier.status("not a member of the cluster")
        await self._tell_changed()

    def _servers_changed(self) -> None:
        self.membership.rewritten.set()

    def _tell_worker(self, uid: str, message: Control) -> None:
        self._links.tell_worker(uid, message)

    def _tell_servers(self, message: Control) -> list[str]:
        return self._links.tell_servers(message)


ServeHttp = Callable[[Node], AbstractAsyncContextManager[str]]


class _Left(Exception):
    """Ends the node's task group: it has left."""
