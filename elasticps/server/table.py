"""All that one shard server hosts, by job and block, kept as the plan says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from elasticps.api.job_codec import JobCodec, load_codec
from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.core.blocks import Block, partition
from elasticps.core.consistency import Consistency
from elasticps.core.ids import LEDGER, BlockId, JobKey, ServerId
from elasticps.core.plan import Entry
from elasticps.core.replication import Role
from elasticps.errors import ElasticError
from elasticps.server.aside import StepsAside, has_cores
from elasticps.server.block_rounds import Siblings
from elasticps.server.compute import ComputeThreads
from elasticps.server.doing import Doing
from elasticps.server.finite import SpotCheck
from elasticps.server.hosted import Hosted
from elasticps.server.joint_pulls import JointPulls
from elasticps.server.landing import Landing
from elasticps.server.ledger_host import LedgerHost
from elasticps.server.load_count import LoadCount
from elasticps.server.parameter_block import ParameterBlock
from elasticps.server.saving import Saver
from elasticps.server.streams import ReplicaStreams
from elasticps.server.tally import Tallies
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.coded_values import are_coded
from elasticps.wire.control_messages import (
    AliveWorkers,
    JobInfo,
    PlanUpdate,
    Promises,
    RecordedSpans,
    RecordSpans,
    ServerLoad,
)
from elasticps.wire.pool import ConnectionPool
from elasticps.wire.recorded import recorded
from elasticps.wire.spans import Spans

log = logging.getLogger(__name__)

REPORT_AGAIN_S = 0.1
REPORTED_SHARE = 0.1
"""Of the server's processor time, what telling promises may take: each report has them all, and
where many blocks catch up one by one the leader is not to plan for each of them."""
LEAST_PAUSE_S = 0.01
COUNTED_AT_ONCE = 500
"""Replicas: some milliseconds, in which the loop does nothing else."""


@dataclass(slots=True)
class _Job:
    info: JobInfo
    blocks: tuple[Block, ...] = ()
    plugin: Optimizer | None = None
    codec: JobCodec | None = None
    saver: Saver | None = None
    broken: str = ""
    alive: AliveWorkers | None = None
    spans: Spans = field(default_factory=Spans)
    hosted: dict[BlockId, Hosted] = field(default_factory=dict)
    siblings: Siblings = field(init=False)

    def __post_init__(self) -> None:
        self.siblings = Siblings(self.hosted)


class Table:
    """The hosted blocks and ledgers of one server. ``outbox`` takes promises for the daemon;
    ``threads`` share out what is large."""

    def __init__(
        self,
        me: ServerId,
        tasks: asyncio.TaskGroup,
        peers: ConnectionPool[ServerId],
        outbox: asyncio.Queue[Promises],
        threads: ComputeThreads | None = None,
        doing: Doing | None = None,
    ) -> None:
        self._doing = doing or Doing()
        self.tallies = Tallies(peers.traffic)
        self.landing = Landing()
        self._spot_check = SpotCheck()
        self.threads = threads or ComputeThreads()
        self.aside = StepsAside() if has_cores() else None
        self.pulls = JointPulls(self.threads)
        self._me = me
        self._outbox = outbox
        self._tasks = tasks
        self._streams = ReplicaStreams(tasks, peers, self._promises_changed)
        self._jobs: dict[JobKey, _Job] = {}
        self._stale_promises: set[JobKey] = set()
        self._next_report_s = 0.0

    def close(self) -> None:
        """End its thread. Idempotent."""
        if self.aside is not None:
            self.aside.close()

    # -- the daemon's word ----------------------------------------------------------------------

    def job_info(self, info: JobInfo) -> None:
        job = self._jobs.setdefault(info.job, _Job(info))
        job.info = info
        if info.model is None or job.blocks:
            return
        job.blocks = partition(info.model)
        job.broken = info.refusal
        if job.broken:
            return
        try:
            job.plugin = load(OPTIMIZERS, info.model.optimizer, Optimizer)  # type: ignore[type-abstract]
            job.codec = load_codec(info.codec)
            job.saver = Saver(self._tasks, info.checkpoint_dir)
        except ElasticError as error:
            job.broken = str(error)
            log.error("job=%s plugin: %s", info.name, error)

    def plan_update(self, update: PlanUpdate) -> None:
        job = self._jobs.get(update.job)
        if job is None:
            log.error("a plan for job %s, which is not known here", update.job)
            return
        for row in update.rows:
            mine = self._me in (row.primary, *row.in_sync, *row.learners)
            if (mine and not job.broken) or row.block in job.hosted:
                entry = Entry(
                    block=row.block,
                    primary=row.primary,
                    in_sync=row.in_sync,
                    learners=row.learners,
                    epoch=row.epoch,
                    fresh=row.fresh,
                    since=row.since,
                )
                self._adopt(job, entry)
        self._promises_changed(update.job)

    def _adopt(self, job: _Job, entry: Entry) -> None:
        hosted = job.hosted.get(entry.block)
        if hosted is None:
            try:
                hosted = job.hosted[entry.block] = self._made(job, entry.block)
            except Exception as error:  # a plugin may raise anything; its job alone ends
                job.broken = f"{type(error).__name__}: {error}"
                log.exception("job=%s block=%s cannot be made", job.info.name, entry.block)
                return
            hosted.spans = job.spans
        hosted.adopt(entry)
        if hosted.replication.role is Role.NONE:
            del job.hosted[entry.block]
        elif isinstance(hosted, LedgerHost) and job.alive is not None:
            hosted.observe(job.alive.workers, job.alive.revision)

    def _made(self, job: _Job, block: BlockId) -> Hosted:
        info = job.info
        counts = self.tallies.counts_of(info.job, info.name)
        if block == LEDGER:
            return LedgerHost(info, self._me, self._streams, counts)
        assert info.model is not None
        assert job.plugin is not None
        piece = job.blocks[block - 1]
        parameter = info.model.parameters[piece.parameter]
        in_rounds = info.consistency is Consistency.SYNC and not parameter.at_once
        coded = job.codec if in_rounds and are_coded(job.codec, piece) else None
        doing = self._doing.of_job(info.name)
        tensor = TensorBlock(piece, parameter, info.model, job.plugin, coded, self.threads, doing)
        return ParameterBlock(
            info,
            tensor,
            self._me,
            self._streams,
            counts,
            self._spot_check,
            job.codec,
            saver=job.saver,
            in_rounds=in_rounds,
            siblings=job.siblings,
            aside=self.aside,
        )

    def alive_workers(self, message: AliveWorkers) -> None:
        job = self._jobs.get(message.job)
        if job is None:
            return
        job.alive = message
        ledger = job.hosted.get(LEDGER)
        if isinstance(ledger, LedgerHost):
            ledger.observe(message.workers, message.revision)

    def drop_job(self, key: JobKey) -> None:
        job = self._jobs.pop(key, None)
        if job is None:
            return
        for hosted in job.hosted.values():
            hosted.drop()

    def record_spans(self, asked: RecordSpans) -> Iterable[RecordedSpans]:
        """Begin to record what blocks of a job do; or end it, and say what they did."""
        job = self._jobs.get(asked.job)
        spans = job.spans if job else Spans()
        if asked.steps:
            spans.start(asked.most, asked.seconds)
            return ()
        return recorded(asked.job, spans)

    # -- look-up for sessions -------------------------------------------------------------------

    def broken(self, job: JobKey) -> str:
        """Why this server cannot serve a job at all; empty when it can."""
        known = self._jobs.get(job)
        return known.broken if known else ""

    def block_bytes(self, job: JobKey) -> list[int]:
        """The sizes of the job's blocks; none while its model is not known here."""
        known = self._jobs.get(job)
        return [block.nbytes for block in known.blocks] if known else []

    def replica(self, job: JobKey, block: BlockId) -> Hosted | None:
        known = self._jobs.get(job)
        return known.hosted.get(block) if known else None

    # -- reports to the daemon ------------------------------------------------------------------

    def _promises_changed(self, job: JobKey) -> None:
        if not self._stale_promises:
            loop = asyncio.get_running_loop()
            if loop.time() < self._next_report_s:
                loop.call_at(self._next_report_s, self._send_promises)
            else:
                loop.call_soon(self._send_promises)
        self._stale_promises.add(job)

    def _send_promises(self) -> None:
        """Each job's newest state; what the daemon has no room for now is sent later."""
        # Processor time: a server that has lost its core for a while has nothing to make up for.
        began_s = time.thread_time()
        for key in sorted(self._stale_promises):
            if self._outbox.full():
                asyncio.get_running_loop().call_later(REPORT_AGAIN_S, self._send_promises)
                return
            rows = tuple(row for hosted in self._all(key) for row in hosted.promises())
            self._outbox.put_nowait(Promises(key, rows))
            self._stale_promises.discard(key)
        pause_s = max(LEAST_PAUSE_S, (time.thread_time() - began_s) / REPORTED_SHARE)
        self._next_report_s = asyncio.get_running_loop().time() + pause_s

    def _all(self, key: JobKey) -> Iterable[Hosted]:
        job = self._jobs.get(key)
        return job.hosted.values() if job else ()

    def load(self) -> ServerLoad:
        count = LoadCount(time.monotonic())
        for hosted in self._everything():
            count.add(hosted)
        return count.told(self.tallies)

    async def load_in_turns(self) -> tuple[ServerLoad, float]:
        """As ``load``, and the seconds that it took; after each few replicas the loop turns to
        others."""
        began_s, away_s = time.monotonic(), 0.0
        count = LoadCount(began_s)
        for number, hosted in enumerate(self._everything(), 1):
            count.add(hosted)
            if number % COUNTED_AT_ONCE == 0:
                left_s = time.monotonic()
                await asyncio.sleep(0)
                away_s += time.monotonic() - left_s
        return count.told(self.tallies), time.monotonic() - began_s - away_s

    def _everything(self) -> list[Hosted]:
        return [item for key in self._jobs for item in self._all(key)]
