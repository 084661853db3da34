"""Checkpoints of a job on real daemons: by the clock of its rounds, by a user's wish, resumed."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import pytest
import torch
from safetensors.torch import load_file
from torch.optim import Adam

from elasticps.checkpoint.directory import complete, newest
from elasticps.checkpoint.manifest import read_manifest
from elasticps.checkpoint.snapshot import read
from elasticps.cli import answers
from elasticps.errors import ElasticError
from tests.integration.cluster.acts import Cluster, Job, kill
from tests.integration.cluster.scripts.train import network, numbers, trained_alone

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def elasticps(cluster: Cluster, *arguments: str) -> tuple[int, str, str]:
    """Run the command line: its exit code, its stdout and its stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "elasticps", "--api", cluster.url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def test_a_user_asks_for_a_checkpoint_and_another_job_goes_on_from_it(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    job = await shared_cluster.train("--optimizer", "adam", max_workers=1, checkpoint_dir=str(root))
    await job.goes_on()

    code, out, error = await elasticps(shared_cluster, "checkpoint", job.name)

    assert code == 0, error
    place = newest(root)
    assert out == f"{place}\n"
    found = read(place)
    assert found.job == job.name
    shown = (await job.look()).checkpoint
    assert shown is not None
    assert (shown.directory, shown.round) == (str(place), found.round)
    await job.cancel()
    await job.ended()
    await job.is_left_by_all()

    resumed = await shared_cluster.train("--optimizer", "adam", max_workers=1, resume=str(root))
    ended = await resumed.finish()

    assert ended.state == "SUCCEEDED"
    assert resumed.goal > found.round
    (result,) = resumed.results().values()
    alone = trained_alone(resumed.goal, lr=0.05, kind=Adam)
    assert result["numbers"] == pytest.approx(alone, abs=1e-4)


@pytest.mark.long
async def test_exported_weights_load_in_plain_torch_and_are_the_jobs(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    root, out = tmp_path / "checkpoints", tmp_path / "weights.safetensors"
    job = await shared_cluster.train(start_workers=2, checkpoint_dir=str(root))
    await job.goes_on()
    for _ in range(2):
        code, _, error = await elasticps(shared_cluster, "checkpoint", "save", job.name)
        assert code == 0, error

    code, listed, error = await elasticps(shared_cluster, "checkpoint", "list", job.name, "--json")
    assert code == 0, error
    code, _, error = await elasticps(shared_cluster, "checkpoint", "export", job.name, str(out))
    assert code == 0, error

    rows = json.loads(listed)["checkpoints"]
    assert [row["path"] for row in rows] == [str(path) for _, path in complete(root)]
    assert [row["problem"] for row in rows] == ["", ""]
    model = network()
    model.load_state_dict(load_file(out))
    alone = trained_alone(rows[0]["round"], lr=0.05)
    assert numbers(model) == pytest.approx(alone, abs=1e-4)
    values = read(newest(root)).values
    assert all(torch.equal(item, values[name]) for name, item in model.state_dict().items())
    assert (await job.finish()).state == "SUCCEEDED"


async def test_a_job_without_a_directory_has_no_list_and_one_that_is_not_there_says_so(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    plain = await shared_cluster.train(max_workers=1)
    code, out, error = await elasticps(shared_cluster, "checkpoint", "list", plain.name)
    assert (code, out) == (2, "")
    assert "field checkpoint_dir" in error
    await plain.cancel()
    await plain.ended()

    root = tmp_path / "saved"
    job = await shared_cluster.train(max_workers=1, checkpoint_dir=str(root))
    await job.goes_on(2)
    shutil.rmtree(root)
    code, _, error = await elasticps(shared_cluster, "checkpoint", "list", job.name)
    assert code == 1
    assert f"{root} on n" in error
    assert "No such file or directory" in error
    await job.cancel()
    await job.ended()


@pytest.mark.long
async def test_every_checkpoint_there_is_is_whole_when_the_main_worker_is_killed_again_and_again(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    job = await shared_cluster.train(
        start_workers=2, checkpoint_dir=str(root), checkpoint_every=1, audit=True
    )
    for _ in range(3):
        at = await job.goes_on(5)
        kill(await main_worker(job))
        # None is half written; but a newer one may take the place of the oldest as we look.
        assert read(newest(root)).round >= at - 2
        await job.goes_on(5)
        assert len(complete(root)) in (3, 4)
    ended = await job.finish()
    assert (ended.state, ended.verdict.lost, ended.verdict.duplicated) == ("SUCCEEDED", 0, 0)


@pytest.mark.long
async def test_a_second_job_does_not_get_the_directory_of_one_that_trains(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    wishes: dict[str, Any] = {"max_workers": 1, "checkpoint_dir": str(root), "checkpoint_every": 1}
    first = await shared_cluster.train(**wishes)
    await first.goes_on()
    for resume in ("", str(root)):
        second = await shared_cluster.train(**wishes, resume=resume)
        ended = await second.ended()
        assert ended.state == "FAILED"
        assert f"job {first.name} has its checkpoints here" in ended.reason
    kill(await main_worker(first))
    await first.goes_on(5)
    ended = await first.finish()
    assert ended.state == "SUCCEEDED"
    owners = {read_manifest(path).owner for _, path in complete(root)}
    assert (ended.checkpoint_attempts.failed, len(owners), len(owners.pop())) == (0, 1, 32)


async def main_worker(job: Job) -> int:
    """Its process."""

    def node(look: answers.Job) -> str:
        running = [worker for worker in look.workers if worker.state == "running"]
        return next((worker.node for worker in running if worker.rank == 0), "")

    found = await job.until(node, "has a main worker")
    return (await job.worker_pids(found))[0]


@pytest.mark.parametrize("state", ["without a directory", "ended"])
async def test_a_checkpoint_that_cannot_be_is_refused(
    state: str, shared_cluster: Cluster, tmp_path: Path
) -> None:
    root = str(tmp_path) if state == "ended" else ""
    job = await shared_cluster.train(max_workers=1, checkpoint_dir=root)
    if state == "ended":
        await job.cancel()
        await job.ended()
    code, out, error = await elasticps(shared_cluster, "checkpoint", job.name)
    assert (code, out) == (2, "")
    assert state.split()[-1] in error
    await job.cancel()
    await job.ended()


class Hdfs(BaseHTTPRequestHandler):
    """A store in which every path is a directory."""

    def do_GET(self) -> None:
        body = json.dumps({"FileStatus": {"type": "DIRECTORY", "length": 0}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.bad_input
async def test_a_checkpoint_whose_destination_is_gone_is_refused_with_field_and_hint(
    shared_cluster: Cluster, script: Callable[[str], Path]
) -> None:
    """The job was taken while its store answered. Nobody else may have the place meanwhile."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hdfs) as store:
        thread = Thread(target=store.serve_forever)
        thread.start()
        url = f"webhdfs://127.0.0.1:{store.server_port}/jobs"
        idle = script("import signal\nsignal.pause()\n")
        gone = await shared_cluster.submit(idle, checkpoint_dir=url)
        with pytest.raises(ElasticError, match=f"job {gone.name} has its checkpoints in") as taken:
            await shared_cluster.submit(idle, checkpoint_dir=f"{url}/")
        assert (taken.value.field, taken.value.limit) == ("checkpoint_dir", "one job at a time")
        store.shutdown()
        thread.join()
    nowhere = await shared_cluster.submit(idle)
    expected = {
        gone: ("a place that all machines reach", "each machine's daemon needs the credentials"),
        nowhere: (None, "submit it with --checkpoint-dir"),
    }
    async with aiohttp.ClientSession(shared_cluster.url) as api:
        for job, (limit, hint) in expected.items():
            async with api.post(f"/api/v1/jobs/{job.name}/checkpoint") as answer:
                error = (await answer.json())["error"]
            assert answer.status == 400
            assert (error["field"], error["limit"]) == ("checkpoint_dir", limit)
            assert hint in error["hint"]
            assert url in error["what"] or job is nowhere
            asked = shared_cluster.local.keys.job_checkpoint(job.name)
            assert await shared_cluster.local.store.get(asked) is None
    for job in expected:
        await job.cancel()
        await job.ended()


async def test_resuming_from_nothing_fails_the_job_and_says_so(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    job = await shared_cluster.train(max_workers=1, resume=str(tmp_path))
    ended = await job.ended()
    assert ended.state == "FAILED"
    assert "no complete checkpoint" in ended.reason
