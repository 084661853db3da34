"""``elasticps bench`` against a fake of the HTTP API; its script against a real shard server."""

from __future__ import annotations

import json
import math
import runpy
import sys
from typing import Any

import pytest

from elasticps.cli.bench import SCRIPT
from elasticps.core.push_pull import PushPull, from_metrics, to_metrics
from elasticps.testing.rig import Rig

FOUND = PushPull(
    nbytes=100_000_000,
    steps=20,
    p50_s=0.05,
    p99_s=0.08,
    wrong=0,
    sent={"unix": 10, "tcp": 4_000},
)


def ended(found: PushPull, **changes: Any) -> list[dict[str, Any]]:
    return [{"state": "SUCCEEDED", "metrics": to_metrics(found), **changes}]


def test_the_figures_are_those_that_the_jobs_have_told(api, elasticps):
    api.career = ended(FOUND) * 2  # one job after the other
    code, out, _ = elasticps("bench", "--workers", 2, "--replicas", 2)
    assert code == 0
    assert "2 workers, 2 copies, over tcp" in out
    assert "100 MB pushed and pulled: 8 GB/s, p50 50 ms, p99 80 ms a step" in out
    jobs = [body for path, body in api.asked("POST") if path == "/api/v1/jobs"]
    assert [body["argv"][1:] for body in jobs] == [["100000000", "20", "1"], ["4096", "500", "1"]]
    assert {body["start_workers"] for body in jobs} == {2}


def test_json_is_one_document(api, elasticps):
    api.career = ended(FOUND) * 2  # one job after the other
    code, out, _ = elasticps("bench", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["gb_per_s"], found["transport"]) == (4.0, "tcp")
    assert found["latency_p50_us"] == pytest.approx(50_000)


def test_a_wrong_element_is_a_failure_and_no_figure(api, elasticps):
    wrong = PushPull(nbytes=4, steps=1, p50_s=1, p99_s=1, wrong=3, sent={})
    api.career = ended(wrong)
    code, out, err = elasticps("bench")
    assert (code, out) == (1, "")
    assert "3 elements are not what SGD makes of them" in err


def test_a_job_that_failed_is_told(api, elasticps):
    api.career = ended(FOUND, state="FAILED", reason="no memory")
    code, _, err = elasticps("bench")
    assert code == 1
    assert "FAILED: no memory" in err


@pytest.mark.parametrize(
    "options", [("--nodes", 1, "--replicas", 2), ("--megabytes", 0), ("--codec", "no-such")]
)
def test_what_cannot_be_measured_is_refused(api, elasticps, options):
    code, _, err = elasticps("bench", *options)
    assert code == 2
    assert str(options[-2]).strip("-") in err.replace("'", "")
    assert not api.asked("POST")


def test_figures_survive_the_jobs_status_and_half_of_them_are_none():
    numbers = to_metrics(FOUND)
    assert from_metrics(numbers) == FOUND
    assert from_metrics({key: numbers[key] for key in list(numbers)[:3]}) is None
    assert from_metrics(numbers | {"bench/p50_s": math.nan}) is None


async def test_the_script_measures_a_real_server_and_says_by_which_transport(monkeypatch):
    import asyncio

    async with Rig(1) as rig:
        for name, item in rig.environment("w1").items():
            monkeypatch.setenv(name, item)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "8192", "5", "1"])
        await asyncio.to_thread(runpy.run_path, str(SCRIPT), run_name="__main__")
        found = from_metrics(rig.progress["w1"].metrics)
    assert found is not None
    assert (found.steps, found.wrong, found.transport) == (5, 0, "shm")
    assert 0 < found.p50_s <= found.p99_s
    assert found.sent["shm"] >= 2 * 5 * 8192
