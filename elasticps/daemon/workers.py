"""The node's workers: as many as the leader assigned, each life with its uid and its record."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from elasticps.core.audit import Verdict
from elasticps.core.ids import JobKey, NodeId, WorkerId
from elasticps.core.jobs import is_unfinished
from elasticps.core.records import JobSpec, WorkerRecord, WorkerState, encode
from elasticps.core.restart import (
    Ended,
    GiveUp,
    Restart,
    RestartPolicy,
    RestartTracker,
    RestartWhen,
)
from elasticps.core.shares import seniority
from elasticps.daemon.access import NodeAccess
from elasticps.daemon.child import ChildSpec, Exit
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.life import Life, record_of_end
from elasticps.daemon.log_files import LogBuffer
from elasticps.daemon.process_group import makes_own_group, taken_port, torchrun_variables
from elasticps.daemon.supervisor import Supervisor
from elasticps.daemon.view import ClusterView, JobView
from elasticps.daemon.worker_child import child_of, failure_of, last_words, remove_files
from elasticps.errors import StoreError, StoreUnavailable, UsageError
from elasticps.store import Lease, Store
from elasticps.wire.control_messages import Access, Retire, Welcome

log = logging.getLogger(__name__)

RETIRE_GRACE_S = 15.0
"""How long a worker may take to end its round and leave before it is stopped: half of what a
stopping daemon waits by default."""
RECORD_RETRY_S = 0.5
LAST_WORDS_S = 2.0
MAX_RANKS = 1000
"""Of so many ended workers it is known which rank they had, for who asks what they wrote."""
AFTER_SIGNALS = RestartPolicy(when=RestartWhen.ON_SIGNAL, max_restarts=5)
"""A worker may take ten seconds to come to its death: more restarts do not fit into the window."""


Retirer = Callable[[str, Retire], None]
"""Sends a worker, by its uid, the word to leave."""


@dataclass(slots=True)
class _Slot:
    """When the next life of a job's workers may begin, after lives that were killed."""

    tracker: RestartTracker
    not_before: float = 0.0
    gave_up: str = ""


class Workers:
    """Starts, retires and buries the node's workers; ``gone`` is called when one is buried."""

    def __init__(
        self,
        config: DaemonConfig,
        store: Store,
        view: ClusterView,
        supervisor: Supervisor,
        logs: LogBuffer,
        control: str,
        gone: Callable[[], Awaitable[None]],
        access: NodeAccess | None = None,
    ) -> None:
        self.lives: dict[str, Life] = {}
        self._config = config
        self._store = store
        self._view = view
        self._supervisor = supervisor
        self._logs = logs
        self._control = control
        self._gone = gone
        self._access = access
        self._me = NodeId(config.node)
        self._next_number = 1
        self._slots: dict[JobKey, _Slot] = {}
        self._recorded = 0
        self._last_ranks: dict[str, int] = {}
        self._tasks: asyncio.TaskGroup

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """From now on tasks run in ``tasks``."""
        self._tasks = tasks

    def reconfigured(self, config: DaemonConfig) -> None:
        """Workers that start from now on are told this."""
        self._config = config

    # -- reconciling ----------------------------------------------------------------------------

    async def reconcile(self, lease: Lease | None, retire: Retirer) -> float | None:
        """Start or retire workers until each job has what its status says.

        Returns after how many seconds to look again; None: when something changes. Without a
        lease no worker may live: the cluster has declared them dead.
        """
        again_s: float | None = None
        for job in self._view.active_jobs:
            if "status" in job.damaged and lease is not None:
                continue  # nobody knows what it says
            wanted = job.status.workers.get(self._me, 0) if job.status and lease else 0
            lives = [life for life in self.lives.values() if life.job == job.key]
            staying = [life for life in lives if life.retire is None]
            staying.sort(key=lambda life: seniority(life.worker, job.scale))
            for life in staying[wanted:]:
                self._retire(life, retire)
            for life in _unaware(lives)[: max(0, wanted - len(staying))]:
                self._keep(life)
            if lease is not None and len(lives) < wanted and self._may_begin(job):
                again_s = await self._start_more(job, wanted - len(lives), lease, again_s)
        active = {job.key for job in self._view.active_jobs}
        for life in list(self.lives.values()):
            if lease is None or life.job not in active:
                self._retire(life, retire)
                life.over.set()
        self._slots = {job: slot for job, slot in self._slots.items() if job in active}
        return again_s

    def _may_begin(self, job: JobView) -> bool:
        """Nobody, once a worker has come to its end in order, unless a later end was not.

        What the status wants may be from before the end of a worker here, or of one elsewhere.
        """
        if job.status is None or self._view.revision < self._recorded:
            return False
        return is_unfinished(job.status, job.workers.values())

    async def _start_more(
        self, job: JobView, count: int, lease: Lease, again_s: float | None
    ) -> float | None:
        assert job.spec is not None
        slot = self._slots.setdefault(job.key, _Slot(RestartTracker(AFTER_SIGNALS)))
        wait_s = slot.not_before - time.monotonic()
        if slot.gave_up or not _has_all(job):
            return again_s
        if wait_s > 0:
            return wait_s if again_s is None else min(again_s, wait_s)
        for _ in range(count):
            await self._start(job, job.spec, lease)
        slot.tracker.started(time.monotonic())
        return again_s

    async def _start(self, job: JobView, spec: JobSpec, lease: Lease) -> None:
        """Record the life in etcd, which names it, then start the process.

        Nothing is started where the job has ended meanwhile and is forgotten.
        """
        of_job = job.key
        while True:
            number = self._next_number
            uid = f"{self._me}.{number}"
            record = encode(WorkerRecord(node=self._me))
            key = self._view.keys.worker(job.name, uid)
            # The number is used up only by an answer: else a lost one would leave a life behind
            # that no process lives, and that the job waits for.
            same = self._view.keys.same_job(job.name, of_job)
            created = await self._store.create(key, record, lease.id, given=(same,))
            self._next_number += 1
            if created is not None:
                break
            if all(each.key != of_job for each in self._view.active_jobs):
                return
        life = Life(
            uid=uid,
            worker=WorkerId(created),
            job=of_job,
            job_name=job.name,
            child=f"{job.name}.{number}",
            block_bytes=spec.block_bytes,
            audit=spec.audit,
            place=self._place(of_job),
            own_group=makes_own_group(spec),
        )
        self.lives[uid] = life
        try:
            child = self._child_of(life, spec, job)
            if life.own_group and (taken := taken_port(child.env)):
                self._bury(life, self._failed(taken))
                return
            self._supervisor.add(
                child, lambda exit_: self._ended(life, exit_), log_buffer=self._logs
            )
        except UsageError as error:  # the API refuses such a job; another may have written it
            self._bury(life, self._failed(f"the job cannot be started: {error}"))
            return
        log.info("job=%s worker=%s started, number %d", job.name, uid, life.worker)

    def _place(self, job: JobKey) -> int:
        """The lowest number that none of the job's workers here has."""
        taken = {life.place for life in self.lives.values() if life.job == job and not life.ended}
        return next(place for place in itertools.count() if place not in taken)

    def _child_of(self, life: Life, spec: JobSpec, job: JobView) -> ChildSpec:
        workers = job.status.workers if job.status else {}
        addresses = {name: node.http for name, node in self._view.nodes.items()}
        group = torchrun_variables(spec, self._me, life.place, workers, addresses)
        return child_of(life, spec, self._config, self._control, group)

    # -- endings --------------------------------------------------------------------------------

    def rank_of(self, uid: str) -> int | None:
        """The rank of a worker of this node, or the last one that it had; None: not known."""
        life = self.lives.get(uid)
        if life is not None and life.progress is not None:
            return life.progress.rank
        return self._last_ranks.get(uid)

    def _retire(self, life: Life, retire: Retirer) -> None:
        """Ask a worker to leave after its round, unless it was asked already."""
        if life.retire is None:
            life.retire = Retire("the leader wants no worker here any more")
            retire(life.uid, life.retire)
            life.retiring = self._tasks.create_task(self._see_off(life))

    def _keep(self, life: Life) -> None:
        """It is wanted after all, and has not heard otherwise yet."""
        assert life.retiring is not None
        life.retiring.cancel()
        life.retire = life.retiring = None

    async def _see_off(self, life: Life) -> None:
        """Stop the worker when its grace is over, or its job, or its lease."""
        reason = "stopped: its job has ended, or the node's lease"
        try:
            async with asyncio.timeout(RETIRE_GRACE_S):
                await life.over.wait()
        except TimeoutError:
            reason = f"stopped: it had not left after {RETIRE_GRACE_S:g} s"
            life.over.set()
        if not life.ended:
            await self._supervisor.remove(life.child)
            verdict = None if life.joined or not life.audit else Verdict()
            record = WorkerRecord(
                node=self._me, state=WorkerState.LEFT, reason=reason, verdict=verdict
            )
            self._bury(life, record)

    def _ended(self, life: Life, exit_: Exit) -> None:
        """The process has ended by itself: what became of it decides what is recorded."""
        self._tasks.create_task(self._judge(life, exit_))

    async def _judge(self, life: Life, exit_: Exit) -> None:
        """Its end may be seen before its last words are read."""
        if life.joined:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await life.hung_up.wait()
        if life.ended:
            return
        directory = self._config.runtime_dir
        failure, words = failure_of(life, directory), last_words(life, self._logs)
        record = record_of_end(self._me, life, exit_, failure, words)
        slot = self._slots.get(life.job)
        if slot is not None and record.state is WorkerState.KILLED:
            decision = slot.tracker.exited(time.monotonic(), Ended.SIGNAL)
            if isinstance(decision, Restart):
                slot.not_before = time.monotonic() + decision.after_s
            elif isinstance(decision, GiveUp):
                slot.gave_up = decision.reason
                reason = f"{record.reason}; {decision.reason}"
                record = msgspec.structs.replace(record, state=WorkerState.FAILED, reason=reason)
        self._bury(life, record)
        await self._supervisor.remove(life.child)

    def _failed(self, reason: str) -> WorkerRecord:
        return WorkerRecord(node=self._me, state=WorkerState.FAILED, reason=reason)

    def _bury(self, life: Life, record: WorkerRecord) -> None:
        life.ended = True
        life.over.set()
        if life.progress is not None:
            self._last_ranks[life.uid] = life.progress.rank
            for forgotten in list(self._last_ranks)[:-MAX_RANKS]:
                del self._last_ranks[forgotten]
        remove_files(life, self._config.runtime_dir)
        log.info(
            "job=%s worker=%s %s: %s", life.job_name, life.uid, record.state.value, record.reason
        )
        self._tasks.create_task(self._write(life, record))

    async def _write(self, life: Life, record: WorkerRecord) -> None:
        """Replace the life's record, without a lease: the leader must see it even if we leave."""
        key = self._view.keys.worker(life.job_name, life.uid)
        while True:
            try:
                # None: the key went with a lost lease or with its job, and is not to come back.
                written = await self._store.replace(key, encode(record), life.worker)
                self._recorded = max(self._recorded, written or 0)
                break
            except StoreUnavailable as error:
                log.warning("worker=%s record not written: %s", life.uid, error)
                await asyncio.sleep(RECORD_RETRY_S)
            except StoreError as error:
                log.error("worker=%s record refused: %s", life.uid, error)
                break
        self.lives.pop(life.uid, None)
        # The view may have shown the record before etcd's answer came, and not change again.
        await self._gone()

    # -- what workers say -----------------------------------------------------------------------

    def access(self, uid: str) -> Access | None:
        """What a worker shows from now on; None where nothing is to be shown, or nobody is left."""
        life = self.lives.get(uid)
        if life is None or self._access is None:
            return None
        return self._access.of_worker(life.worker, life.job)

    def welcome(self, uid: str, cluster: str) -> Welcome | None:
        life = self.lives.get(uid)
        if life is None:
            return None
        life.joined = True
        return Welcome(
            worker=life.worker,
            job=life.job,
            node=self._me,
            cluster=cluster,
            audit=life.audit,
            block_bytes=life.block_bytes,
            access=self.access(uid),
            shared_memory=self._config.shared_memory,
        )


def _has_all(job: JobView) -> bool:
    """Who makes a group of all workers must know of all of them when it starts."""
    assert job.spec is not None
    assert job.status is not None
    if not makes_own_group(job.spec):
        return True
    return sum(job.status.workers.values()) >= job.spec.start_workers


def _unaware(lives: list[Life]) -> list[Life]:
    """Those that are to go and have not been told: they have not said hello yet."""
    return [life for life in lives if life.retire and not (life.joined or life.over.is_set())]
