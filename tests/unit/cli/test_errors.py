"""Bad input and bad luck: what a command prints, and exits with."""

from __future__ import annotations

import pytest

from elasticps.cli import client
from elasticps.cli.main import main
from elasticps.cli.options import Settings
from tests.support.fake_api import FakeApi, job


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--api", "http://h:70000", "status"], "limit: 1 to 65535"),
        (["--api", "127.0.0.1:7400", "status"], "limit: http://host:port"),
        (["--api", "http://user@h:1", "status"], "--api"),
        (["stauts"], "status"),
        (["status", "--jsno"], "--json"),
        (["drain"], "NODE"),
        (["drain", "n1", "--timeout", "nan"], "more than 0 s"),
        (["drain", "n1", "--timeout", "-1"], "more than 0 s"),
        (["drain", ".."], "field node"),
        (["submit", "nothing.py"], "SCRIPT"),
        (["submit", "."], "SCRIPT"),
        (["submit", "--replicas", "0", "train.py"], "--replicas"),
        (["submit", "--replicas", "8", "train.py"], "--replicas"),
        (["submit", "--replicas", "nan", "train.py"], "--replicas"),
        (["submit", "--min-insync", "3", "train.py"], "field min_insync) (limit: 1 to 2"),
        (["submit", "--consistency", "strict", "train.py"], "--consistency"),
        (["submit", "--staleness", "-1", "train.py"], "--staleness"),
        (["submit", "--staleness", "4", "train.py"], "field staleness"),
        (["submit", "--backup-workers", "1", "train.py"], "field backup_workers"),
        (["submit", "--checkpoint-every", "-1", "train.py"], "--checkpoint-every"),
        (["submit", "--checkpoint-every", "5", "train.py"], "field checkpoint_dir"),
        (["submit", "--resume", "", "train.py"], "--resume"),
        (["run", "--backup-workers", "1", "train.py"], "field backup_workers"),
        (["run", "--nodes", "2", "--min-insync", "3", "train.py"], "field min_insync"),
        (["submit", "--start-workers", "1000000", "train.py"], "--start-workers"),
        (["submit", "--start-workers", "4", "--max-workers", "3", "train.py"], "--max-workers"),
        (["submit", "--block-bytes", "1KiB", "train.py"], "4KiB to 128MiB"),
        (["submit", "--block-bytes", "nan", "train.py"], "--block-bytes"),
        (["submit", "--env", "A", "train.py"], "KEY=VALUE"),
        (["run", "nothing.py"], "SCRIPT"),
        (["run", "--nodes", "0", "train.py"], "--nodes"),
        (["run", "--nodes", "65", "train.py"], "--nodes"),
        (["run", "--workers-per-node", "0", "train.py"], "--workers-per-node"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_exits_2_and_names_the_field(args, complaint, elasticps, script):
    code, out, err = elasticps(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert complaint in err


@pytest.mark.parametrize("args", [["status"], ["nodes"], ["drain", "n1"], ["rebalance"]])
def test_an_unreachable_daemon_exits_1_with_a_hint(args, api, elasticps):
    api.close()
    code, out, err = elasticps(*args)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {api.url}")
    assert "is the daemon running?" in err


def test_a_daemon_that_does_not_answer_exits_1(api, elasticps, monkeypatch):
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.1)
    api.jobs["mnist"] = job("mnist")
    monkeypatch.setattr(FakeApi, "_status", FakeApi._logs)  # follows a job that never ends

    async def hang(self, request):
        await self._closing.wait()

    monkeypatch.setattr(FakeApi, "_rebalance", hang)
    with FakeApi() as silent:
        code, _, err = elasticps("--api", silent.url, "rebalance")
    assert code == 1
    assert "did not answer in time" in err


@pytest.mark.parametrize(
    ("status", "answer", "code", "complaint"),
    [
        (400, {"error": {"what": "no", "field": "job", "limit": "1", "hint": "h"}}, 2, "hint: h"),
        (404, {"error": {"what": "gone", "where": None}}, 2, "gone"),
        (409, {"error": {"what": "twice"}}, 1, "twice"),
        (503, {"error": {"what": "no leader"}}, 1, "no leader"),
        (500, "<html>oops", 1, "HTTP 500"),
        (302, "", 1, "HTTP 302"),
        (200, "<html>hello", 1, "not understood"),
        (200, {"moves": 5}, 1, "$.moves"),
        (400, {"error": {"what": "\x1b[2Jclear"}}, 2, "error: [2Jclear"),
    ],
)
def test_an_error_of_the_daemon_is_shown_once(status, answer, code, complaint, api, elasticps):
    api.errors["/api/v1/rebalance"] = (status, answer)
    shown, out, err = elasticps("rebalance")
    assert (shown, out) == (code, "")
    assert err.count("error: ") == 1
    assert complaint in err


def test_a_bug_is_one_line_unless_debugging_is_asked_for(capsys, monkeypatch):
    def broken(self: Settings) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(Settings, "connect", broken)
    assert main(["status"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "internal error: KeyError: 'surprise'" in err
    monkeypatch.setenv("ELASTICPS_DEBUG", "1")
    assert main(["status"]) == 1
    assert "Traceback" in capsys.readouterr().err
