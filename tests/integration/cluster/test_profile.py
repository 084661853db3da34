"""A job of a real cluster is profiled while it trains: the trace is whole, and Perfetto's."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from elasticps.errors import UsageError
from tests.integration.cluster.acts import Cluster, Training

pytestmark = pytest.mark.asyncio(loop_scope="package")

Event = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def job(shared_cluster: Cluster) -> AsyncIterator[Training]:
    job = await shared_cluster.train(start_workers=2, max_workers=2, replicas=2)
    await job.is_trained_by("n1", "n2")
    yield job
    if not (await job.look()).final:
        await job.finish()


async def profiled(cluster: Cluster, *arguments: str) -> str:
    """What ``elasticps profile`` prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "elasticps", "--api", cluster.url, "profile", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


def lie_within(inner: list[Event], outer: list[Event]) -> bool:
    """Does each of ``inner`` lie in one of ``outer``, which are of the same line?"""
    return all(
        any(
            (a["pid"], a["tid"]) == (b["pid"], b["tid"])
            and b["ts"] <= a["ts"]
            and a["ts"] + a["dur"] <= b["ts"] + b["dur"] + 1e-6
            for b in outer
        )
        for a in inner
    )


async def test_the_trace_of_a_job_has_every_phase_and_opens_in_perfetto(
    job: Training, tmp_path: Path
) -> None:
    out = tmp_path / "trace.json"

    said = await profiled(job.cluster, job.name, "--steps", "3", "--out", str(out))

    trace = json.loads(out.read_text())
    events = trace["traceEvents"]
    for event in events:
        assert {"ph", "pid", "tid", "name"} <= event.keys()
        assert event["ph"] in ("X", "M")
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in spans)
    assert len({event["args"]["name"] for event in events if event["name"] == "process_name"}) == 4

    of = {name: [event for event in spans if event["name"] == name] for name in NAMES}
    assert all(of.values()), {name: len(found) for name, found in of.items()}
    assert len(of["step"]) == 6
    assert lie_within(of["forward"] + of["backward"] + of["optimizer.step"], of["step"])
    assert not any(
        a["ts"] < b["ts"] < a["ts"] + a["dur"] < b["ts"] + b["dur"]
        for _, line in itertools.groupby(
            sorted(spans, key=lambda each: (each["pid"], each["tid"], each["ts"])),
            key=lambda each: (each["pid"], each["tid"]),
        )
        for a, b in itertools.combinations(list(line), 2)
    )
    for push in of["push"]:
        assert push["args"].keys() == {"round", "block", "bytes", "via"}
        assert push["args"]["via"] == "shm"

    assert "milliseconds a step, the mean of 3" in said
    for each in trace["profile"]["workers"]:
        parts = [each[f"{name}_s"] for name in PARTS]
        assert sum(parts) == pytest.approx(each["step_s"], abs=1e-6)
    assert trace["profile"]["advice"] in said
    assert trace["missing"] == {}


NAMES = ("step", "forward", "backward", "optimizer.step", "wait", "push", "vote", "pull")
NAMES += ("stage", "apply", "replicate")
PARTS = ("forward", "backward", "script", "others", "push", "vote", "pull", "rest")


async def test_a_job_is_profiled_once_at_a_time_and_trains_on(job: Training) -> None:
    path = f"/api/v1/jobs/{job.name}/profile"
    async with aiohttp.ClientSession(job.cluster.url) as session:
        answers = await asyncio.gather(*(session.post(path, json={"steps": 20}) for _ in range(2)))
        statuses = sorted(answer.status for answer in answers)
    assert statuses == [200, 409]
    await job.goes_on()


@pytest.mark.parametrize(
    ("body", "field"),
    [({"steps": 0}, "steps"), ({"steps": 101}, "steps"), ({"wait_s": 999}, "wait_s")],
)
async def test_what_cannot_be_recorded_is_refused_by_name(
    job: Training, body: dict[str, int], field: str
) -> None:
    path = f"/api/v1/jobs/{job.name}/profile"
    async with aiohttp.ClientSession(job.cluster.url) as session:
        answer = await session.post(path, json=body)
        assert answer.status == 400
        assert (await answer.json())["error"]["field"] == field


async def test_a_job_that_has_ended_is_refused(job: Training) -> None:
    await job.finish(after=2)
    async with job.cluster.api() as api:
        with pytest.raises(UsageError, match="no worker now"):
            await api.profile(job.name, steps=1, wait_s=1)
