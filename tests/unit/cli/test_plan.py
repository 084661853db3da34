"""``elasticps plan`` and ``--strategy auto`` against a fake of the HTTP API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from elasticps.cli.trial import trying
from elasticps.core.measured import DONE, CodecSpeed, Measured, to_metrics
from tests.support.fake_api import FakeApi

pytestmark = pytest.mark.usefixtures("script")

NAMES = ("bf16", "int8", "ef+top-k")


def numbers(**changes: Any) -> dict[str, float]:
    """What a trial has measured: the sum is the quickest exact way, the codecs are slow."""
    fields: dict[str, Any] = {
        "steps": 6,
        "workers": 2,
        "model_bytes": 4_000_000,
        "largest_parameter_bytes": 1_000_000,
        "compute_s": 0.02,
        "optimizer_s": 0.001,
        "copy_s": 0.001,
        "exchange_s": 0.05,
        "pull_s": 0.02,
        "vote_s": 0.001,
        "sum_s": 0.005,
        "fetch_s": 0.008,
        "bytes_per_s": 1e9,
        "round_trip_s": 1e-3,
        **changes,
    }
    speeds = {name: CodecSpeed(fraction=0.25, encode_s=0.1, decode_s=0.1) for name in NAMES}
    return {**to_metrics(Measured(**fields, codecs=speeds)), DONE: 1.0}


def submitted(api: FakeApi) -> list[dict[str, Any]]:
    return [body for path, body in api.asked("POST") if path == "/api/v1/jobs"]


def test_a_plan_shows_each_choice_within_80_columns_the_fastest_first(api, elasticps):
    api.career = [{"state": "RUNNING"}, {"metrics": numbers()}]
    code, out, _ = elasticps("plan", "--on-cluster", 2, "train.py", "--lr", 1)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "2 workers on 2 nodes" in out
    assert "measured links of 8e+03 Mbit/s, 1 ms there and back; 6 steps" in out
    rows = [line.split()[0] for line in out.splitlines() if line.startswith(("local", "all", "da"))]
    assert rows[0] == "local-sgd:h=64"
    assert rows.index("all-reduce") < rows.index("data-parallel")
    assert "auto takes all-reduce, codec none" in out
    ((trial,),) = [submitted(api)]
    assert trial["strategy"] == "auto"
    assert trial["argv"][1:] == ["--lr", "1"]
    assert api.jobs["train-1"]["state"] == "CANCELLED"


def test_a_supposed_link_is_predicted_for(api, elasticps):
    api.career = [{"metrics": numbers()}]
    code, out, _ = elasticps(
        "plan", "--on-cluster", 2, "--json", "--link", "20Mbit,1ms", "train.py"
    )
    plan = json.loads(out)
    assert code == 0
    assert (plan["bytes_per_s"], plan["round_trip_s"], plan["supposed"]) == (2.5e6, 1e-3, True)
    steps = {(each["strategy"], each["codec"]): each["step_s"] for each in plan["choices"]}
    assert steps["data-parallel", "int8"] < steps["data-parallel", "none"]
    assert steps["all-reduce", "none"] == pytest.approx(1.6, rel=0.1)
    assert plan["auto_approximate"]["strategy"] == "local-sgd:h=64"
    for choice in plan["choices"]:
        assert sum(choice["parts"].values()) == pytest.approx(choice["step_s"])


@pytest.mark.parametrize("text", ["1Gbit", "0Mbit,1ms", "1GB,1ms", "fast", "1Gbit,-1ms"])
def test_a_link_that_is_none_is_refused(text, api, elasticps):
    code, _, err = elasticps("plan", "--on-cluster", 2, "--link", text, "train.py")
    assert code == 2
    assert "1Gbit,5ms" in err
    assert not submitted(api)


def test_auto_submits_what_it_has_chosen_and_says_why(api, elasticps):
    api.career = [{"metrics": numbers()}]
    options = ("--name", "mnist", "--start-workers", 2, "--env", "A=b", "--audit")
    code, out, err = elasticps("submit", "--strategy", "auto", *options, "train.py")
    assert code == 0
    assert "auto: all-reduce: 28 ms a step, compute 71%" in err
    assert "data-parallel 70 ms, push 37%" in err
    assert "submitted mnist" in out
    trial, job = submitted(api)
    assert (trial["strategy"], job["strategy"]) == ("auto", "all-reduce")
    assert "name" not in trial
    assert "audit" not in trial
    assert trial["env"] == job["env"] == {"A": "b"}
    assert job["audit"]


def test_auto_with_checkpoints_stays_with_the_shards_and_tries_without_them(api, elasticps):
    api.career = [{"metrics": numbers()}]
    code, _, _ = elasticps("submit", "--strategy", "auto", "--checkpoint-dir", "saved", "train.py")
    assert code == 0
    trial, job = submitted(api)
    assert "checkpoint_dir" not in trial
    assert job.get("strategy", "data-parallel") == "data-parallel"


def test_approximate_choices_are_taken_when_that_is_said(api, elasticps):
    api.career = [{"metrics": numbers()}]
    assert elasticps("submit", "--strategy", "auto:approximate=true", "train.py")[0] == 0
    assert submitted(api)[1]["strategy"].startswith("local-sgd")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--strategy", "auto:h=3"), "auto:approximate=true"),
        (("--strategy", "auto", "--codec", "int8"), "field codec"),
        (("--strategy", "auto", "--consistency", "async"), "field consistency"),
    ],
)
def test_what_does_not_go_with_auto_is_refused_before_anything_is_sent(
    options, told, api, elasticps
):
    code, _, err = elasticps("submit", *options, "train.py")
    assert code == 2
    assert told in err
    assert not submitted(api)


def test_a_script_that_fails_in_its_trial_is_shown(api, elasticps):
    failure = {"node": "n1", "worker": "n1.1", "reason": "ValueError: oops", "traceback": ""}
    api.career = [{"state": "FAILED", "reason": "a worker failed", "failure": failure}]
    code, _, err = elasticps("submit", "--strategy", "auto", "train.py")
    assert code == 1
    assert "ValueError: oops" in err
    assert "a trial of the script" in err
    assert len(submitted(api)) == 1


def test_a_script_that_ends_before_it_has_stepped_is_told_of(api, elasticps):
    api.career = [{"state": "SUCCEEDED", "reason": "all workers finished"}]
    code, _, err = elasticps("plan", "--on-cluster", 2, "train.py")
    assert code == 1
    assert "ended before a step was measured" in err


def test_script_that_takes_no_step_is_waited_for_and_that_is_said():
    assert trying("2 workers", 9.9, stepped=False) == "trying the script out: 2 workers"
    told = "trying the script out: 2 workers; no step in the first 40 s"
    assert trying("2 workers", 47.0, stepped=False) == told
    assert trying("2 workers", 47.0, stepped=True) == "trying the script out: 2 workers"
