"""A node's workers as the leader wants them: real processes, a real etcd, no shard server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from elasticps.core.ids import Generation, JobName, NodeId, Round
from elasticps.core.records import (
    JobSpec,
    JobState,
    JobStatus,
    LivingWorker,
    ScaleRecord,
    WorkerState,
    encode,
)
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.life import NEVER_CLOSED, NEVER_JOINED
from elasticps.daemon.log_files import LogBuffer
from elasticps.daemon.supervisor import Supervisor
from elasticps.daemon.workers import Workers
from elasticps.errors import StoreUnavailable
from elasticps.store import Lease, Store
from elasticps.wire.control_messages import Finished, Progress, Retire
from elasticps.worker.launch import FAILURE_VARIABLE, ScriptFailure
from tests.integration.daemon.mirror import Mirrored, mirrored
from tests.support.etcd import EtcdServer
from tests.support.processes import runs, until

NODE = NodeId("a")
JOB = JobName("job")


class Staffed:
    """A node that a job wants workers of, and whom of them it told to retire."""

    def __init__(self, cluster: Mirrored, supervisor: Supervisor, directory: Path) -> None:
        self.cluster = cluster
        self.told: list[str] = []
        self._supervisor = supervisor
        self._script = directory / "sleeps.py"
        self.script("import time; time.sleep(1000)")
        config = DaemonConfig(
            etcd=cluster.store.endpoints.config,
            node=NODE,
            state_dir=directory,
            log_dir=directory,
            runtime_dir=directory,
        )
        self.workers = Workers(
            config, cluster.store, cluster.view, supervisor, LogBuffer(), "unix:/nobody", self._gone
        )

    async def _gone(self) -> None:
        async with self.cluster.changed:
            self.cluster.changed.notify_all()

    def script(self, text: str) -> None:
        """What the workers run that are started from now on."""
        self._script.write_text(text)

    def retire(self, uid: str, _: Retire) -> None:
        self.told.append(uid)

    async def submitted(self, **more: Any) -> None:
        spec = JobSpec(name=JOB, argv=(str(self._script),), cwd="/", **more)
        await self.cluster.store.put(self.cluster.keys.job_spec(JOB), encode(spec))

    async def wanted(
        self, count: int, state: JobState = JobState.RUNNING, *, last_broken_off: int = 0
    ) -> None:
        """The leader's word."""
        status = JobStatus(
            state=state, reason="", workers={NODE: count}, last_broken_off=last_broken_off
        )
        store, keys = self.cluster.store, self.cluster.keys
        revision = await store.put(keys.job_status(JOB), encode(status))
        await self.cluster.until(lambda: self.cluster.view.revision >= revision)

    @property
    def running(self) -> list[LivingWorker]:
        return self.cluster.view.jobs[JOB].running

    def pids(self) -> list[int]:
        return [child.pid for child in self._supervisor.snapshot() if child.pid]


@asynccontextmanager
async def staffed(
    store: Store, directory: Path, **more: Any
) -> AsyncIterator[tuple[Staffed, Lease]]:
    """``more``: of the job's spec."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(mirrored(store))
        lease = await stack.enter_async_context(Lease.grant(store, 60))
        supervisor = await stack.enter_async_context(Supervisor(directory / "logs"))
        node = Staffed(cluster, supervisor, directory)
        await node.submitted(**more)
        tasks = asyncio.TaskGroup()
        await tasks.__aenter__()
        node.workers.start(tasks)
        yield node, lease
        await node.workers.reconcile(None, node.retire)
        await tasks.__aexit__(None, None, None)


async def test_worker_whose_record_etcd_did_not_confirm_is_started_once(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    config = etcd_server.config(request_timeout_s=0.3)
    async with Store(config) as store, staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        etcd_server.pause()
        with pytest.raises(StoreUnavailable):
            await node.workers.reconcile(lease, node.retire)
        etcd_server.resume()

        await node.workers.reconcile(lease, node.retire)

        await node.cluster.until(lambda: node.running)
        assert [life.uid for life in node.running] == ["a.1"]
        assert list(node.workers.lives) == ["a.1"]
        assert node.workers.lives["a.1"].worker == node.running[0].worker
        await until(lambda: len(node.pids()) == 1)


async def test_no_worker_is_started_for_a_job_that_is_forgotten_meanwhile(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        await store.delete_prefix(node.cluster.keys.job(JOB))  # the view has not heard of it yet
        await node.submitted()
        await node.workers.reconcile(lease, node.retire)
        assert node.workers.lives == {}
        assert (await store.list(node.cluster.keys.workers(JOB))).items == ()
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert len(node.workers.lives) == 1


async def test_who_waits_for_the_last_worker_hears_of_its_end_though_the_view_told_it_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        await until(node.pids)
        replace = store.replace

        async def answers_late(*arguments: Any) -> int | None:
            written = await replace(*arguments)
            await node.cluster.until(lambda: not node.running)
            return written

        monkeypatch.setattr(store, "replace", answers_late)
        await node.workers.reconcile(None, node.retire)

        await node.cluster.until(lambda: not node.workers.lives)


async def test_worker_that_has_not_said_hello_is_kept_when_it_is_wanted_again(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        await until(node.pids)
        before = node.pids()
        await node.wanted(0)
        await node.workers.reconcile(lease, node.retire)
        assert node.workers.lives["a.1"].retire is not None

        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)

        assert node.workers.lives["a.1"].retire is None
        assert (list(node.workers.lives), node.pids()) == (["a.1"], before)


async def test_worker_that_was_told_to_retire_is_replaced_only_when_it_has_left(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert node.workers.welcome("a.1", "test") is not None
        for count in (0, 1):
            await node.wanted(count)
            await node.workers.reconcile(lease, node.retire)
        assert node.told == ["a.1"]
        assert list(node.workers.lives) == ["a.1"]


async def test_of_several_workers_the_highest_rank_of_a_scale_leaves_first(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(3)
        await node.workers.reconcile(lease, node.retire)
        lives = [node.workers.lives[uid] for uid in ("a.1", "a.2", "a.3")]
        for life in lives:
            assert node.workers.welcome(life.uid, "test") is not None
        first, main, last = (life.worker for life in lives)
        record = ScaleRecord(workers=1, ranks=(main, last, first))
        await node.cluster.store.put(node.cluster.keys.job_scale(JOB), encode(record))
        for count in (2, 1):
            await node.wanted(count)
            await node.workers.reconcile(lease, node.retire)
        assert node.told == ["a.1", "a.3"]


@pytest.mark.parametrize("gone", ["lease", "job"])
async def test_worker_that_may_still_end_its_round_is_stopped_when_its_job_or_lease_is_gone(
    store: Store, tmp_path: Path, gone: str
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        await until(node.pids)
        (pid,) = node.pids()
        await node.wanted(0)
        await node.workers.reconcile(lease, node.retire)
        assert runs(pid)

        if gone == "job":
            await node.wanted(0, JobState.SUCCEEDED)
        await node.workers.reconcile(None if gone == "lease" else lease, node.retire)

        async with asyncio.timeout(10):  # its grace was 15 s
            await until(lambda: not node.workers.lives)
        assert not runs(pid)


async def test_nothing_is_kept_of_a_job_that_has_ended(store: Store, tmp_path: Path) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert len(node.workers._slots) == 1
        await node.wanted(0, JobState.CANCELLED)
        await node.workers.reconcile(lease, node.retire)
        assert node.workers._slots == {}
        await until(lambda: not node.workers.lives)


async def test_surplus_worker_is_the_youngest(store: Store, tmp_path: Path) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(2)
        await node.workers.reconcile(lease, node.retire)
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert node.told == ["a.2"]


async def test_status_that_cannot_be_read_changes_nothing(store: Store, tmp_path: Path) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        await store.put(node.cluster.keys.job_status(JOB), b"\0 not ours")
        await node.cluster.until(lambda: node.cluster.view.jobs[JOB].damaged)
        await node.workers.reconcile(lease, node.retire)
        assert node.told == []
        assert list(node.workers.lives) == ["a.1"]


async def test_failure_that_an_earlier_life_of_the_name_left_behind_is_not_told(
    store: Store, tmp_path: Path
) -> None:
    """A daemon that was killed begins its numbers anew, beside what its workers had written."""
    named = tmp_path / "named"
    told = f"pathlib.Path({str(named)!r}).write_text(os.environ[{FAILURE_VARIABLE!r}])"
    async with staffed(store, tmp_path) as (before, lease):
        before.script(f"import os, pathlib, time; {told}; time.sleep(1000)")
        await before.wanted(1)
        await before.workers.reconcile(lease, before.retire)
        await until(lambda: named.exists() and named.read_text())
    # As its lease would have taken it, had the daemon died.
    assert await store.delete(before.cluster.keys.worker(JOB, "a.1"))
    Path(named.read_text()).write_bytes(msgspec.json.encode(ScriptFailure("out of the job", "")))

    async with staffed(store, tmp_path) as (node, lease):
        node.script("")
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        lives = node.cluster.view.jobs[JOB].workers
        await node.cluster.until(
            lambda: "a.1" in lives and lives["a.1"].record.state is WorkerState.FAILED
        )
        assert lives["a.1"].record.reason == NEVER_JOINED


async def test_worker_that_ends_with_code_0_without_leaving_the_job_has_failed(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        node.script("import os; os._exit(0)")
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert node.workers.welcome("a.1", "test") is not None
        lives = node.cluster.view.jobs[JOB].workers
        await node.cluster.until(
            lambda: "a.1" in lives and lives["a.1"].record.state is WorkerState.FAILED
        )
        assert lives["a.1"].record.reason == NEVER_CLOSED


async def test_worker_that_ends_with_a_code_says_what_it_wrote_to_stderr_last(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        node.script(
            "import os\n"
            "for text in ('reading', 'no data here'):\n"
            "    os.write(2, (text + '\\n').encode())\n"
            "os.write(1, b'bye\\n')\n"
            "os._exit(3)\n"
        )
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert node.workers.rank_of("a.1") is None
        life = node.workers.lives["a.1"]
        life.progressed(Progress(round=Round(4), generation=Generation(1), rank=2, world=3))
        lives = node.cluster.view.jobs[JOB].workers
        await node.cluster.until(
            lambda: "a.1" in lives and lives["a.1"].record.state is WorkerState.FAILED
        )
        await until(lambda: not node.workers.lives)
        assert node.workers.rank_of("a.1") == 2  # for who asks what it wrote
        record = lives["a.1"].record
        assert record.reason == "exited with code 3: no data here"
        assert record.traceback == "reading\nno data here"


async def test_nobody_begins_after_an_end_in_order_until_the_leader_knows_of_a_broken_one(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        node.script("import os; os._exit(0)")
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert node.workers.welcome("a.1", "test") is not None
        node.workers.lives["a.1"].finished = Finished(left=False)
        lives = node.cluster.view.jobs[JOB].workers
        await node.cluster.until(lambda: node.running)
        # The leader's word is from before the end, and so is what the node knows for a while.
        while lives["a.1"].record.state is WorkerState.RUNNING:
            await node.workers.reconcile(lease, node.retire)
            await asyncio.sleep(0)
        await node.workers.reconcile(lease, node.retire)
        assert lives["a.1"].record.state is WorkerState.SUCCEEDED
        assert list(lives) == ["a.1"]

        await node.wanted(1, last_broken_off=lives["a.1"].revision - 1)
        await node.workers.reconcile(lease, node.retire)
        assert not node.workers.lives

        await node.wanted(1, last_broken_off=lives["a.1"].revision + 1)
        await node.workers.reconcile(lease, node.retire)
        assert list(node.workers.lives) == ["a.2"]


async def test_worker_that_was_stopped_leaves_no_failure_behind(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path) as (node, lease):
        node.script(
            "import pathlib, signal, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: 1 / 0)\n"
            f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
            "time.sleep(1000)"
        )
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        await until((tmp_path / "ready").exists)
        await node.workers.reconcile(None, node.retire)
        await until(lambda: not node.workers.lives)
        assert not list(tmp_path.glob("*.failure*"))
