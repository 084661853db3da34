"""Workers whose script makes a process group of its own, as one for torchrun does."""

from __future__ import annotations

import json
from pathlib import Path

from elasticps.core.jobs import GROUP_BROKEN
from elasticps.core.records import WorkerRecord, WorkerState
from elasticps.store import Store
from tests.integration.daemon.test_workers import JOB, Staffed, staffed
from tests.support.processes import until

TORCHRUN = "all-reduce:torchrun=true"


async def ended(node: Staffed, uid: str) -> WorkerRecord:
    lives = node.cluster.view.jobs[JOB].workers
    await node.cluster.until(
        lambda: uid in lives and lives[uid].record.state is not WorkerState.RUNNING
    )
    return lives[uid].record


async def test_it_starts_when_all_are_known_and_each_is_told_its_rank(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path, strategy=TORCHRUN, start_workers=2) as (node, lease):
        node.script(
            "import json, os, pathlib\n"
            "told = {key: os.environ[key] for key in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')}\n"
            f"path = pathlib.Path({str(tmp_path)!r}) / os.environ['ELASTICPS_WORKER']\n"
            "path.write_text(json.dumps(told))\n"
        )
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        assert not node.workers.lives

        await node.wanted(2)
        await node.workers.reconcile(lease, node.retire)
        for number, uid in enumerate(("a.1", "a.2")):
            assert (await ended(node, uid)).state is WorkerState.SUCCEEDED
            told = json.loads((tmp_path / uid).read_text())
            rank = str(number)
            assert told == {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}


async def test_who_is_killed_ends_the_job_and_says_that_the_group_is_broken(
    store: Store, tmp_path: Path
) -> None:
    async with staffed(store, tmp_path, strategy=TORCHRUN) as (node, lease):
        node.script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        await node.wanted(1)
        await node.workers.reconcile(lease, node.retire)
        record = await ended(node, "a.1")
        assert record.state is WorkerState.FAILED
        assert record.reason.startswith("killed by SIGKILL")
        assert record.reason.endswith(GROUP_BROKEN)
        await until(lambda: not node.workers.lives)
