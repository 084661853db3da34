"""``elasticps wait`` against a fake of the HTTP API."""

from __future__ import annotations

import pytest

from elasticps.cli.main import main
from tests.support.fake_api import job, node


@pytest.fixture
def wait(api, capsys):
    """Runs the command: its exit code, and its stderr."""

    def run(*args: str) -> tuple[int, str]:
        code = main(["--api", api.url, "wait", *args])
        return code, capsys.readouterr().err

    return run


def test_it_returns_once_all_is_so(api, wait):
    api.jobs["j"] = job("j", round=3, under_replicated=1)
    api.career = [{"round": 50}, {"round": 100}, {"under_replicated": 0}]
    code, said = wait("--nodes", "2", "--copies", "--round", "j=100", "--timeout", "60")
    assert code == 0
    assert "not within" not in said
    assert api.jobs["j"]["under_replicated"] == 0


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (("--nodes", "3"), "2 nodes, 2 ready, not 3"),
        (("--nodes", "1"), "2 nodes, 2 ready, not 1"),
        (("--copies",), "copies are missing"),
        (("--round", "j=200"), "j is at round 120 of 200"),
        (("--round", "k=1"), "there is no job k"),
    ],
)
def test_what_is_missing_is_told_when_the_time_is_up(api, wait, args, missing):
    api.jobs["j"] = job("j", pending_moves=1)
    code, said = wait(*args, "--timeout", "0.2")
    assert code == 1
    assert f"not within 0.2 s: {missing}" in said


def test_a_node_that_drains_or_does_not_answer_is_not_ready(api, wait):
    api.nodes = [node("n1"), node("n2", state="draining"), node("n3", reachable=False)]
    code, said = wait("--nodes", "3", "--timeout", "0.2")
    assert code == 1
    assert "3 nodes, 1 ready" in said


def test_a_job_that_ended_before_the_round_is_an_error_at_once(api, wait):
    api.jobs["j"] = job("j", state="FAILED", reason="worker n1.1 failed")
    code, said = wait("--round", "j=500")
    assert code == 1
    assert "FAILED at round 120: worker n1.1 failed" in said


def test_a_cluster_that_does_not_answer_is_waited_for(api, wait, capsys):
    api.close()
    code, said = wait("--nodes", "2", "--timeout", "0.5")
    assert code == 1
    assert "the cluster does not answer" in said


@pytest.mark.parametrize("args", [(), ("--round", "j"), ("--round", "j=x"), ("--round", "=3")])
def test_what_cannot_be_waited_for_is_misuse(wait, args):
    assert wait(*args)[0] == 2
