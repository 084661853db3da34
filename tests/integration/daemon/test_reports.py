"""What reaches etcd of what workers and shard servers say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import BlockId, Generation, JobKey, JobName, NodeId, Round, WorkerId
from elasticps.core.records import (
    CaughtUpRow,
    JobSpec,
    MainNote,
    ReportRecord,
    decode,
    encode,
)
from elasticps.daemon.life import Life
from elasticps.daemon.reports import Reports
from elasticps.store import Lease, Store
from elasticps.wire.control_messages import (
    CheckpointReport,
    Describe,
    Prefer,
    Progress,
    Promises,
    Rejected,
)
from tests.integration.daemon.mirror import Mirrored
from tests.support.processes import until

NODE = NodeId("a")


class Reporting:
    """A node's reports on a running job, and whom of its workers it rejected."""

    def __init__(self, cluster: Mirrored) -> None:
        self.cluster = cluster
        self.rejected: dict[str, str] = {}
        self.reports = Reports(cluster.store, cluster.view, NODE, self._reject)

    def _reject(self, uid: str, rejected: Rejected) -> None:
        self.rejected[uid] = rejected.reason

    @property
    def job(self) -> JobKey:
        return self.cluster.view.jobs[JobName("job")].key

    def described(self, uid: str, model: Model) -> None:
        self.reports.described(self.life(uid), Describe(model))

    def life(self, uid: str, progress: Progress | None = None) -> Life:
        return Life(
            uid=uid,
            worker=WorkerId(1),
            job=self.job,
            job_name=JobName("job"),
            child=uid,
            block_bytes=4096,
            audit=False,
            progress=progress,
        )

    def preferred(self, uid: str, *spans: tuple[int, int]) -> None:
        blocks = tuple((BlockId(first), BlockId(stop)) for first, stop in spans)
        self.reports.preferred(self.life(uid), Prefer(blocks))

    @property
    def main(self) -> MainNote | None:
        """Who etcd says is the main worker of the job on this node."""
        report = self.cluster.view.jobs[JobName("job")].reports.get(NODE)
        return report.main if report else None

    async def model(self) -> Model | None:
        key = self.cluster.keys.job_model("job")
        found = await self.cluster.store.get(key)
        return None if found is None else decode(found.value, Model, key)

    async def promised(self) -> tuple[int, tuple[CaughtUpRow, ...]] | None:
        """The lease and the rows of what the node has written."""
        key = self.cluster.keys.report("job", NODE)
        found = await self.cluster.store.get(key)
        return None if found is None else (found.lease, decode(found.value, ReportRecord, key).rows)


@pytest_asyncio.fixture
async def reporting(cluster: Mirrored) -> AsyncIterator[Reporting]:
    spec = JobSpec(name=JobName("job"), argv=("train.py",), cwd="/")
    await cluster.store.put(cluster.keys.job_spec("job"), encode(spec))
    await cluster.until(lambda: cluster.view.active_jobs)
    reporting = Reporting(cluster)
    running = asyncio.create_task(reporting.reports.run())
    yield reporting
    running.cancel()
    await asyncio.wait({running})


def model_of(names: list[str]) -> Model:
    parameters = tuple(Parameter(name=name, shape=(1,), dtype="float32") for name in names)
    return Model(parameters=parameters, optimizer="sgd", groups=({},))


def row(block: int, learner: str = "b/1") -> CaughtUpRow:
    return CaughtUpRow(block=block, learner=learner, epoch=7, snapshot_bytes=4096)


async def test_first_description_is_the_jobs_and_no_other_replaces_it(
    reporting: Reporting,
) -> None:
    reporting.described("a.1", model_of(["first"]))
    await until(lambda: reporting.cluster.view.jobs[JobName("job")].model)
    reporting.described("a.2", model_of(["second"]))
    await until(lambda: not reporting.reports._models)
    assert await reporting.model() == model_of(["first"])
    assert reporting.rejected == {}


async def test_what_was_said_of_a_job_is_not_said_of_a_later_one_of_its_name(
    reporting: Reporting, store: Store
) -> None:
    cluster, job, name = reporting.cluster, reporting.job, JobName("job")
    old = reporting.life("a.1")
    async with Lease.grant(store, 60) as lease:
        reporting.reports.under(lease)
        reporting.reports.promised("shard-server", Promises(job, (row(1),)))
        await until(lambda: cluster.view.jobs[name].reports)
        await store.delete_prefix(cluster.keys.job("job"))
        spec = JobSpec(name=name, argv=("train.py",), cwd="/")
        await store.put(cluster.keys.job_spec("job"), encode(spec))
        # As of before: what of it is written compares that the job is the one that it is of.
        reporting.reports.promised("shard-server", Promises(job, (row(1), row(2))))
        reporting.reports.described(old, Describe(model_of(["old"])))
        await cluster.until(lambda: name in cluster.view.jobs and reporting.job > job)
        await until(lambda: not reporting.reports._models)
        assert await reporting.model() is None
        reporting.described("a.2", model_of(["new"]))
        await until(lambda: cluster.view.jobs[name].model)
        assert await reporting.model() == model_of(["new"])
        assert await reporting.promised() is None
        assert reporting.reports._promises == {}


async def test_model_that_etcd_does_not_take_is_rejected_and_others_are_written(
    reporting: Reporting,
) -> None:
    reporting.described("a.1", model_of([f"parameter {number}" for number in range(20_000)]))
    reporting.described("a.2", model_of(["small"]))

    await until(lambda: reporting.rejected)

    (reason,) = reporting.rejected.values()
    assert list(reporting.rejected) == ["a.1"]
    assert reason.startswith("etcd does not take the job's model: ")
    assert "limit: 1048576 bytes" in reason
    await until(lambda: reporting.cluster.view.jobs[JobName("job")].model)
    assert await reporting.model() == model_of(["small"])


async def test_promises_live_under_the_nodes_lease_and_are_repeated_under_its_next(
    reporting: Reporting, store: Store
) -> None:
    view = reporting.cluster.view
    reporting.reports.promised("shard-server", Promises(reporting.job, (row(1), row(2))))
    async with Lease.grant(store, 60) as first:
        reporting.reports.under(first)
        await until(lambda: NODE in view.jobs[JobName("job")].reports)
        assert await reporting.promised() == (first.id, (row(1), row(2)))
        reporting.reports.under(None)
    assert await reporting.promised() is None

    async with Lease.grant(store, 60) as second:
        reporting.reports.under(second)
        reporting.reports.promised("shard-server", Promises(reporting.job, (row(2),)))
        await until(lambda: len(view.jobs[JobName("job")].caught_up) == 1)
        assert await reporting.promised() == (second.id, (row(2),))
        reporting.reports.promised("shard-server", Promises(reporting.job, ()))
        await until(lambda: not view.jobs[JobName("job")].caught_up)
        assert await reporting.promised() == (second.id, ())


async def test_promises_of_all_shard_servers_of_a_node_are_reported_together(
    reporting: Reporting, store: Store
) -> None:
    view = reporting.cluster.view
    async with Lease.grant(store, 60) as lease:
        reporting.reports.under(lease)
        reporting.reports.promised("shard-server", Promises(reporting.job, (row(1),)))
        reporting.reports.promised("shard-server-2", Promises(reporting.job, (row(2),)))
        await until(lambda: len(view.jobs[JobName("job")].caught_up) == 2)
        assert await reporting.promised() == (lease.id, (row(1), row(2)))
        reporting.reports.promised("shard-server", Promises(reporting.job, ()))
        await until(lambda: len(view.jobs[JobName("job")].caught_up) == 1)
        assert await reporting.promised() == (lease.id, (row(2),))


async def test_empty_promise_writes_nothing_and_an_unknown_jobs_is_forgotten(
    reporting: Reporting, store: Store
) -> None:
    async with Lease.grant(store, 60) as lease:
        reporting.reports.under(lease)
        reporting.reports.promised("shard-server", Promises(reporting.job, ()))
        reporting.reports.promised("shard-server", Promises(JobKey(10**9), (row(1),)))
        await until(lambda: JobKey(10**9) not in reporting.reports._promises)
        await until(lambda: not reporting.reports._unwritten)
        assert await reporting.promised() is None


def progress(rank: int, checkpoint: CheckpointReport | None = None) -> Progress:
    return Progress(
        round=Round(1), generation=Generation(1), rank=rank, world=2, checkpoint=checkpoint
    )


async def test_main_worker_is_noted_with_its_newest_checkpoint_and_beside_the_promises(
    reporting: Reporting, store: Store
) -> None:
    reports = reporting.reports
    async with Lease.grant(store, 60) as lease:
        reports.under(lease)
        reports.promised("shard-server", Promises(reporting.job, (row(1),)))
        reports.progressed(reporting.life("a.2", progress(1)))
        reports.progressed(reporting.life("a.1", progress(0)))
        await until(lambda: reporting.main == MainNote(worker="a.1"))
        made = CheckpointReport(directory="/kept/7", round=Round(7))
        noted = MainNote(worker="a.1", directory="/kept/7", round=7)

        def goes_on() -> bool:  # as a worker does, a few times a second
            reports.progressed(reporting.life("a.1", progress(0, made)))
            return reporting.main == noted

        await until(goes_on)
        assert await reporting.promised() == (lease.id, (row(1),))
        reports.progressed(reporting.life("a.1", progress(1)))
        await until(lambda: reporting.main is None)
        assert await reporting.promised() == (lease.id, (row(1),))


async def test_wishes_of_all_workers_here_are_told_beside_promises_and_go_with_their_worker(
    reporting: Reporting, store: Store
) -> None:
    job = reporting.cluster.view.jobs[JobName("job")]

    def told() -> ReportRecord:
        return job.reports.get(NODE, ReportRecord(()))

    reporting.preferred("a.1", (1, 4))
    reporting.preferred("a.2", (4, 6), (9, 10))
    async with Lease.grant(store, 60) as lease:
        reporting.reports.under(lease)
        await until(lambda: told() == ReportRecord((), ((1, 6), (9, 10))))
        reporting.reports.promised("shard-server", Promises(reporting.job, (row(1),)))
        await until(lambda: told() == ReportRecord((row(1),), ((1, 6), (9, 10))))
        reporting.preferred("a.1", (2, 3))
        await until(lambda: told() == ReportRecord((row(1),), ((2, 3), (4, 6), (9, 10))))
        reporting.preferred("a.2")
        await until(lambda: told() == ReportRecord((row(1),), ((2, 3),)))
        assert list(reporting.reports._wishes[reporting.job]) == ["a.1"]
        reporting.preferred("a.1")
        await until(lambda: told() == ReportRecord((row(1),)))
        assert reporting.reports._wishes == {}
