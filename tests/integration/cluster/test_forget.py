"""A job that has ended is forgotten, and another takes its name: what is told of it is its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.cluster.acts import LOOK_S, WAIT_S, Cluster, Job
from tests.integration.cluster.conftest import Script

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.fixture
def name() -> str:
    """One that no other test's job has."""
    return f"again-{secrets.token_hex(4)}"


async def command(cluster: Cluster, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "elasticps", "--api", cluster.url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def delete(cluster: Cluster, job: str) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.delete(f"{cluster.url}/api/v1/jobs/{job}") as answer,
    ):
        return answer.status, await answer.json()


async def told_by_each(cluster: Cluster, job: Job) -> list[list[str]]:
    """What each node says that the job's workers wrote, as far as it knows the job."""
    found = []
    for node in cluster.local.nodes.values():
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{node.http}/api/v1/jobs/{job.name}/logs") as answer,
        ):
            rows = [json.loads(line) for line in (await answer.text()).splitlines()]
        found.append([row["text"] for row in rows if row["stream"] == "stdout"])
    return found


async def events(cluster: Cluster, job: str) -> list[str]:
    return [row["what"] for row in (await cluster.get(f"/api/v1/events?job={job}"))["events"]]


TRAINS = """
import time, torch, elasticps

with elasticps.join() as run:
    model = torch.nn.Linear(2, 1)
    optimizer = run.optimizer(model, "sgd", lr=0.1)
    data = torch.utils.data.TensorDataset(torch.ones(8, 2))
    print("one", flush=True)
    for (x,) in run.data(data, batch_size=8, epochs=30):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        run.log(loss=1.0)
        time.sleep(0.05)
"""


async def test_a_name_comes_again_and_nothing_of_the_earlier_job_with_it(
    shared_cluster: Cluster, script: Script, name: str, tmp_path: Path
) -> None:
    first = await shared_cluster.submit(
        script(TRAINS), name=name, max_workers=1, checkpoint_dir=str(tmp_path / "saved")
    )
    before = await first.ended()
    assert before.state == "SUCCEEDED", before
    assert await told_by_each(shared_cluster, first) == [["one"], ["one"]]
    assert f"{name} submitted" in (await events(shared_cluster, name))[0]
    assert (await shared_cluster.get(f"/api/v1/jobs/{name}/series"))["points"]
    assert await is_measured(shared_cluster, name)

    code, out, err = await command(shared_cluster, "forget", name)
    said = f"{name}: forgotten; its checkpoints stay in {tmp_path / 'saved'}\n"
    assert (code, out) == (0, said), err
    store, keys = shared_cluster.local.store, shared_cluster.local.keys
    assert (await store.list(keys.job(name))).items == ()
    assert (await events(shared_cluster, name))[-1] == f"{name} is forgotten"
    assert (await command(shared_cluster, "forget", name))[0] == 2

    path = script("print('two')\nraise SystemExit('three')")
    second = await shared_cluster.submit(path, name=name, max_workers=1)
    after = await second.ended()
    assert after.key > before.key
    assert await told_by_each(shared_cluster, second) == [["two"], ["two"]]
    told = await events(shared_cluster, name)
    assert told[0].startswith(f"{name} submitted")
    assert len([what for what in told if "submitted" in what or "forgotten" in what]) == 1
    series = await shared_cluster.get(f"/api/v1/jobs/{name}/series")
    assert series == {"job": name, "points": []}
    async with asyncio.timeout(WAIT_S):
        while await is_measured(shared_cluster, name):
            await asyncio.sleep(LOOK_S)


async def is_measured(cluster: Cluster, job: str) -> bool:
    """Whether any node's metrics have what a shard server did for a job of the name."""
    for node in cluster.local.nodes.values():
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{node.http}/metrics") as answer,
        ):
            if f'elasticps_rounds_total{{job_name="{job}"}}' in await answer.text():
                return True
    return False


async def test_a_job_that_goes_on_is_not_forgotten(
    shared_cluster: Cluster, script: Script, name: str
) -> None:
    job = await shared_cluster.submit(
        script("never"), name=name, start_workers=100, max_workers=100
    )
    status, answer = await delete(shared_cluster, name)
    assert status == 400
    assert answer["error"] == {
        "what": f"job {name} has not ended",
        "where": None,
        "field": "job",
        "limit": "a job that has ended",
        "hint": f"`elasticps cancel {name}` ends it",
    }
    await job.cancel()
    await job.ended()
    assert await delete(shared_cluster, name) == (200, {"job": name, "checkpoint_dir": ""})
    assert (await delete(shared_cluster, name))[0] == 404


async def test_a_job_without_a_name_gets_a_higher_number_than_those_that_are_there(
    shared_cluster: Cluster, script: Script, tmp_path: Path
) -> None:
    path = script("raise SystemExit(1)").rename(tmp_path / f"numbered-{secrets.token_hex(4)}.py")
    jobs = [await shared_cluster.submit(path, max_workers=1) for _ in range(3)]
    assert [job.name for job in jobs] == [f"{path.stem}-{number}" for number in (1, 2, 3)]
    await jobs[0].ended()
    assert (await delete(shared_cluster, jobs[0].name))[0] == 200
    assert (await shared_cluster.submit(path, max_workers=1)).name == f"{path.stem}-4"
