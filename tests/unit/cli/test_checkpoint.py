"""``elasticps checkpoint`` and what the status shows of it, against a fake of the HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fake_api import FakeApi, job

Command = Callable[..., tuple[int, str, str]]
WRITTEN = {"directory": "/ckpt/round-00000120", "round": 120, "request": 7, "error": ""}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as fake:
        fake.jobs["mnist"] = job("mnist")
        yield fake


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def old(request: int) -> dict[str, Any]:
    return {"checkpoint": {**WRITTEN, "request": request, "round": request}}


def test_it_waits_for_the_checkpoint_that_was_asked_for(api: FakeApi, elasticps: Command) -> None:
    api.career = [{}, {}, old(3), {"checkpoint": WRITTEN}]
    code, out, _ = elasticps("checkpoint", "mnist")
    assert (code, out) == (0, "/ckpt/round-00000120\n")
    assert api.asked("POST") == [("/api/v1/jobs/mnist/checkpoint", None)]


def test_without_waiting_it_asks_once(api: FakeApi, elasticps: Command) -> None:
    assert elasticps("checkpoint", "--no-wait", "mnist")[:2] == (0, "mnist: asked for\n")
    assert len(api.asked("POST")) == 1


def test_a_checkpoint_that_could_not_be_written_is_a_failure(
    api: FakeApi, elasticps: Command
) -> None:
    api.career = [{}, {"checkpoint": {**WRITTEN, "error": "No space left on device"}}]
    code, out, error = elasticps("checkpoint", "mnist")
    assert (code, out) == (1, "")
    assert "No space left on device" in error


def test_a_job_that_ends_meanwhile_is_a_failure(api: FakeApi, elasticps: Command) -> None:
    api.career = [{}, old(3), {"state": "SUCCEEDED", "reason": "done"}]
    code, _, error = elasticps("checkpoint", "mnist")
    assert code == 1
    assert "the job has ended before: SUCCEEDED, done" in error


def test_waiting_ends_when_it_should(elasticps: Command) -> None:
    code, _, error = elasticps("checkpoint", "--timeout", "0.1", "mnist")
    assert code == 1
    assert "not written within 0.1 s" in error


def test_where_no_worker_has_told_its_round_none_is_guessed(
    api: FakeApi, elasticps: Command
) -> None:
    api.jobs["mnist"]["round"] = None
    _, _, error = elasticps("checkpoint", "--timeout", "0.1", "mnist")
    assert "waiting for the workers" in error
    assert "end of round" not in error


def test_what_a_strategy_makes_it_wait_for_is_said(api: FakeApi, elasticps: Command) -> None:
    waiting = "the next round that strategy all-reduce gives to the shards"
    api.jobs["mnist"]["checkpoint"] = {**WRITTEN, "request": 3, "waits_for": waiting}
    _, _, error = elasticps("checkpoint", "--timeout", "0.1", "mnist")
    assert f"round {api.jobs['mnist']['round']}: waiting for {waiting}\n" in error
    assert f"not written within 0.1 s: it waits for {waiting}" in error
    _, out, _ = elasticps("status")
    assert f"mnist: the checkpoint that was asked for waits for {waiting}\n" in out


def test_an_unknown_job_is_refused(api: FakeApi, elasticps: Command) -> None:
    code, _, error = elasticps("checkpoint", "mnits")
    assert code == 2
    assert "mnist" in error
    assert api.asked("POST") == []


def test_status_shows_the_newest_checkpoint_and_why_there_is_no_newer(
    api: FakeApi, elasticps: Command
) -> None:
    api.jobs["mnist"]["checkpoint"] = {**WRITTEN, "error": "No space left on device"}
    _, out, _ = elasticps("status")
    assert "mnist: checkpoint of round 120 in /ckpt/round-00000120\n" in out
    assert "mnist: no newer one: No space left on device\n" in out


def test_status_counts_the_checkpoints_that_failed(api: FakeApi, elasticps: Command) -> None:
    attempts = {"made": 1, "failed": 3, "error": "No space left on device"}
    api.jobs["mnist"]["checkpoint_attempts"] = attempts
    _, out, _ = elasticps("status")
    assert "mnist: 3 of 4 checkpoints failed: No space left on device\n" in out
