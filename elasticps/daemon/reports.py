"""What children say that must reach etcd: a job's model, promised learners, and wishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from elasticps.core.affinity import Span, joined
from elasticps.core.ids import JobKey, JobName, NodeId
from elasticps.core.records import CaughtUpRow, ReportRecord, encode
from elasticps.daemon.view import ClusterView
from elasticps.daemon.workers import Life
from elasticps.errors import StoreError, StoreRolledBack, StoreUnavailable
from elasticps.store import Lease, Store
from elasticps.wire.messages import Describe, Prefer, Promises, Rejected

log = logging.getLogger(__name__)

RETRY_S = 0.3


class Reports:
    """Writes the newest word of each kind; many words in a short time become one write.

    ``reject`` tells a worker, by its uid, that etcd refuses its model.
    """

    def __init__(
        self,
        store: Store,
        view: ClusterView,
        node: NodeId,
        reject: Callable[[str, Rejected], None],
    ) -> None:
        self._store = store
        self._view = view
        self._node = node
        self._reject = reject
        self._lease: Lease | None = None
        self._promises: dict[JobKey, tuple[CaughtUpRow, ...]] = {}
        self._wishes: dict[JobKey, dict[str, tuple[Span, ...]]] = {}
        self._unwritten: set[JobKey] = set()
        self._models: dict[str, tuple[JobName, Describe]] = {}
        self._news = asyncio.Event()

    def promised(self, promises: Promises) -> None:
        self._promises[promises.job] = promises.rows
        self._unwritten.add(promises.job)
        self._news.set()

    def preferred(self, life: Life, prefer: Prefer) -> None:
        """A worker's wishes replace those that it had; one that is gone has none."""
        before = self._wishes.setdefault(life.job, {})
        if before.get(life.uid, ()) != prefer.blocks:
            before[life.uid] = prefer.blocks
            self._unwritten.add(life.job)
            self._news.set()

    def described(self, life: Life, describe: Describe) -> None:
        self._models[life.uid] = (life.job_name, describe)
        self._news.set()

    def under(self, lease: Lease | None) -> None:
        """Reports live under the node's lease; a new one wants them all again."""
        self._lease = lease
        self._unwritten.update(self._promises, self._wishes)
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._write_models()
                await self._write_reports()
            except StoreError as error:
                log.warning("reports wait for etcd: %s", error)
                self._news.set()
                await asyncio.sleep(RETRY_S)

    async def _write_models(self) -> None:
        """The first description of a job counts: an existing one is never replaced."""
        for uid, (job, describe) in list(self._models.items()):
            try:
                await self._store.create(self._view.keys.job_model(job), encode(describe.model))
            except (StoreUnavailable, StoreRolledBack):
                raise
            except StoreError as error:
                self._reject(uid, Rejected(f"etcd does not take the job's model: {error}"))
            self._models.pop(uid, None)

    async def _write_reports(self) -> None:
        lease = self._lease
        if lease is None:
            return
        for key in sorted(self._unwritten):
            # Taken off first: what is promised during the write is news again.
            self._unwritten.discard(key)
            try:
                await self._write_report(key, lease)
            except StoreError:
                self._unwritten.add(key)
                raise

    async def _write_report(self, key: JobKey, lease: Lease) -> None:
        job = next((job for job in self._view.active_jobs if job.key == key), None)
        if job is None:
            self._promises.pop(key, None)
            self._wishes.pop(key, None)
            return
        rows, wishes = self._promises.get(key, ()), self._wishes_for(key)
        if rows or wishes or self._node in job.reports:
            path = self._view.keys.report(job.name, self._node)
            await self._store.put(path, encode(ReportRecord(rows, wishes)), lease.id)

    def _wishes_for(self, key: JobKey) -> tuple[Span, ...]:
        """Those of all workers of the job here."""
        return joined(span for each in self._wishes.get(key, {}).values() for span in each)
