"""What children say that must reach etcd: a job's model, promised learners, wishes, and who is its
main worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from elasticps.core.affinity import Span, joined
from elasticps.core.ids import JobKey, NodeId
from elasticps.core.records import CaughtUpRow, MainNote, ReportRecord, encode
from elasticps.core.sound import check_described
from elasticps.daemon.life import Life
from elasticps.daemon.view import ClusterView
from elasticps.errors import StoreError, StoreRolledBack, StoreUnavailable, UsageError
from elasticps.store import Lease, Put, Store
from elasticps.wire.control_messages import Describe, Prefer, Promises, Rejected

log = logging.getLogger(__name__)

RETRY_S = 0.3
NOTE_PERIOD_S = 1.0
"""Checkpoints come as often as a job wants them; etcd hears of one a second at most."""


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
        self._promises: dict[JobKey, dict[str, tuple[CaughtUpRow, ...]]] = {}
        self._mains: dict[JobKey, MainNote] = {}
        self._noted_at: dict[JobKey, float] = {}
        self._wishes: dict[JobKey, dict[str, tuple[Span, ...]]] = {}
        self._unwritten: set[JobKey] = set()
        self._models: dict[str, tuple[Life, Describe]] = {}
        self._news = asyncio.Event()

    def promised(self, child: str, promises: Promises) -> None:
        """A shard server's promises, by the name of its process, replace those that it made."""
        self._promises.setdefault(promises.job, {})[child] = promises.rows
        self._unwritten.add(promises.job)
        self._news.set()

    def progressed(self, life: Life) -> None:
        """Note if it is the job's main worker, which ranks first, and no more if it was."""
        known, note = self._mains.get(life.job), _main_note(life)
        if note is None and (known is None or known.worker != life.uid):
            return
        now = time.monotonic()
        # A checkpoint that waits is in what the worker says next, a moment later.
        soon = now - self._noted_at.get(life.job, 0.0) < NOTE_PERIOD_S
        same = note is not None and known is not None and note.worker == known.worker
        if note == known or (same and soon):
            return
        self._noted_at[life.job] = now
        if note is None:
            del self._mains[life.job]
        else:
            self._mains[life.job] = note
        self._unwritten.add(life.job)
        self._news.set()

    def preferred(self, life: Life, prefer: Prefer) -> None:
        """A worker's wishes replace those that it had; one that is gone has none."""
        before = self._wishes.setdefault(life.job, {})
        if before.get(life.uid, ()) != prefer.blocks:
            before[life.uid] = prefer.blocks
            self._unwritten.add(life.job)
            self._news.set()
        if not prefer.blocks:  # nor is who wished something, and is gone, remembered
            before.pop(life.uid, None)
        if not before:
            del self._wishes[life.job]

    def described(self, life: Life, describe: Describe) -> None:
        self._models[life.uid] = (life, describe)
        self._news.set()

    def under(self, lease: Lease | None) -> None:
        """Reports live under the node's lease; a new one wants them all again."""
        self._lease = lease
        self._unwritten.update(self._promises, self._wishes, self._mains)
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
        keys = self._view.keys
        for uid, (life, describe) in list(self._models.items()):
            path, same = keys.job_model(life.job_name), keys.same_job(life.job_name, life.job)
            try:
                check_described(describe.model)
                await self._store.create(path, encode(describe.model), given=(same,))
            except (StoreUnavailable, StoreRolledBack):
                raise
            except UsageError as error:
                self._reject(uid, Rejected(f"a model that nobody can serve: {error}"))
            except StoreError as error:
                self._reject(uid, Rejected(f"etcd does not take the job's model: {error}"))
            self._models.pop(uid, None)

    async def _write_reports(self) -> None:
        lease = self._lease
        if lease is None:
            return
        self._let_go()
        for key in sorted(self._unwritten):
            # Taken off first: what is promised during the write is news again.
            self._unwritten.discard(key)
            try:
                await self._write_report(key, lease)
            except StoreError:
                self._unwritten.add(key)
                raise

    def _let_go(self) -> None:
        """Of all that was said of jobs that have ended."""
        active = {job.key for job in self._view.active_jobs}
        for kept in (self._promises, self._wishes, self._mains, self._noted_at):
            for key in kept.keys() - active:
                del kept[key]
        self._unwritten &= active

    async def _write_report(self, key: JobKey, lease: Lease) -> None:
        job = next((job for job in self._view.active_jobs if job.key == key), None)
        if job is None:
            return  # it has ended meanwhile
        record = ReportRecord(self._promised_for(key), self._wishes_for(key), self._mains.get(key))
        if record.rows or record.wishes or record.main or self._node in job.reports:
            put = Put(self._view.keys.report(job.name, self._node), encode(record), lease.id)
            # Where the job is gone meanwhile the view is about to say so.
            await self._store.put_given(put, (self._view.keys.same_job(job.name, key),))

    def _promised_for(self, key: JobKey) -> tuple[CaughtUpRow, ...]:
        """Those of all shard servers here."""
        return tuple(row for rows in self._promises.get(key, {}).values() for row in rows)

    def _wishes_for(self, key: JobKey) -> tuple[Span, ...]:
        """Those of all workers of the job here."""
        return joined(span for each in self._wishes.get(key, {}).values() for span in each)


def _main_note(life: Life) -> MainNote | None:
    progress = life.progress
    if progress is None or progress.rank != 0:
        return None
    report = progress.checkpoint
    if report is None:
        return MainNote(worker=life.uid)
    return MainNote(
        worker=life.uid, directory=report.directory, round=report.round, error=report.error
    )
