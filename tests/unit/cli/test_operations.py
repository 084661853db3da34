"""Drains, rebalances and jobs: what the commands ask of the API, and what they say."""

from __future__ import annotations

import json
import re

import pytest

from elasticps.cli import client
from elasticps.cli.main import main
from tests.support.fake_api import FakeApi, job, node


def test_drain_waits_until_the_node_holds_nothing(api, elasticps):
    code, out, err = elasticps("drain", "n2")
    assert (code, out) == (0, "n2: drained\n")
    assert api.asked("POST") == [("/api/v1/nodes/n2/drain", {"stay": False})]
    assert "draining n2: 14 blocks, 1 worker left" in err
    assert "\x1b" not in err


def test_drain_ends_when_the_node_is_gone(api, elasticps, monkeypatch):
    monkeypatch.setattr(FakeApi, "_named", lambda self, request: self.nodes.pop())
    assert elasticps("drain", "n2")[:2] == (0, "n2: left the cluster\n")


def test_drain_goes_on_when_the_asked_daemon_is_the_one_that_leaves(api, elasticps):
    with FakeApi() as second:
        second.nodes = [node("n2")]
        api.nodes = [node("n1", http=api.url), node("n2", http=second.url)]
        api.errors["/api/v1/nodes/n1/drain"] = (202, {"node": "n1", "state": "draining"})
        answers = iter([200, 503])

        class Leaving(dict):
            def __contains__(self, path):
                return super().__contains__(path) or (
                    path == "/api/v1/nodes" and next(answers, 503) == 503
                )

            def __missing__(self, path):
                return 503, {"error": {"what": "leaving"}}

        api.errors = Leaving(api.errors)
        assert elasticps("drain", "n1")[:2] == (0, "n1: left the cluster\n")


def test_drain_without_waiting_asks_once(api, elasticps):
    assert elasticps("drain", "n2", "--stay", "--no-wait")[:2] == (0, "n2: draining\n")
    assert api.asked("POST") == [("/api/v1/nodes/n2/drain", {"stay": True})]


def test_drain_that_takes_too_long_fails_and_says_what_is_left(api, elasticps):
    api.drained_per_look = 0
    code, _, err = elasticps("drain", "n2", "--timeout", "0.2")
    assert code == 1
    assert "error: n2: not drained within 0.2 s, 24 blocks, 1 worker left" in err
    assert "elasticps undrain n2" in err


@pytest.mark.parametrize("command", ["drain", "undrain"])
def test_an_unknown_node_is_refused_with_the_known_and_the_nearest(command, api, elasticps):
    api.nodes = [node("machine-a"), node("machine-b"), node("other")]
    code, _, err = elasticps(command, "machine-bb")
    assert code == 2
    assert "field node" in err
    assert "machine-a, machine-b, other" in err
    assert "did you mean machine-b?" in err
    assert not api.asked("POST") + api.asked("DELETE")


def test_of_a_thousand_names_an_error_tells_a_few(api, elasticps):
    api.jobs = {name: job(name) for name in (f"train-{number}" for number in range(1000))}
    code, _, err = elasticps("cancel", "nope")
    assert code == 2
    assert len(err) < 400


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1"])
def test_a_daemon_that_cannot_be_reached_is_told_in_plain_words(capsys, url):
    assert main(["--api", url, "status"]) == 1
    assert "cannot be reached: Connection refused\n" in capsys.readouterr().err


def test_https_where_there_is_none_is_told(api, capsys):
    assert main(["--api", api.url.replace("http:", "https:"), "status"]) == 1
    err = capsys.readouterr().err
    assert "no TLS with the daemon" in err
    assert "http://" in err


def test_undrain_takes_a_drain_back(api, elasticps):
    assert elasticps("undrain", "n2")[:2] == (0, "n2: ready\n")
    assert api.asked("DELETE") == [("/api/v1/nodes/n2/drain", None)]


def test_rebalance_prints_moves_and_totals(api, elasticps):
    move = {"job": "mnist", "block": 7, "source": "n1", "target": "n2", "bytes": 4 << 20}
    api.moves = {"moves": [move, {**move, "source": None}], "bytes": 8 << 20, "pending_moves": 1}
    code, out, _ = elasticps("rebalance", "--dry-run")
    assert code == 0
    assert not api.asked("POST")
    assert re.search(r"mnist +7 +n1 +n2 +4.0 MiB", out)
    assert out.endswith("2 moves, 8.0 MiB; 1 under way\n")
    code, out, _ = elasticps("rebalance", "--json")
    assert json.loads(out) == api.moves
    assert api.asked("POST") == [("/api/v1/rebalance", None)]


def test_rebalance_of_a_balanced_cluster_moves_nothing(api, elasticps):
    assert elasticps("rebalance")[1] == "0 moves, 0 B; 0 under way\n"


def test_submit_sends_the_job_and_leaves_the_rest_to_the_script(api, elasticps, script):
    code, out, _ = elasticps(
        "submit", "--name", "mnist", "--start-workers", 2, "--max-workers", 4, "--audit",
        "--block-bytes", "64KiB", "--env", "A=b=c", "--replicas", 3, "--min-insync", 2,
        "--checkpoint-dir", "saved", "--checkpoint-every", 50,
        "--resume", "/old", "train.py", "--json", "--name", "x",
    )  # fmt: skip
    assert code == 0
    assert "submitted mnist" in out
    assert api.asked("POST") == [
        (
            "/api/v1/jobs",
            {
                "name": "mnist",
                "argv": [str(script), "--json", "--name", "x"],
                "cwd": str(script.parent),
                "env": {"A": "b=c"},
                "start_workers": 2,
                "max_workers": 4,
                "replicas": 3,
                "min_insync": 2,
                "checkpoint_dir": str(script.parent / "saved"),
                "checkpoint_every": 50,
                "resume": "/old",
                "block_bytes": 65536,
                "audit": True,
            },
        )
    ]
    assert elasticps("submit", "--consistency", "bounded", "--staleness", 4, "train.py")[0] == 0
    ((_, _), (_, sent)) = api.asked("POST")
    assert (sent["consistency"], sent["staleness"]) == ("bounded", 4)
    assert json.loads(elasticps("submit", "--json", "train.py")[1])["job"] == "train-1"


def test_a_single_copy_is_warned_of_in_one_line(api, elasticps, script):
    code, _, err = elasticps("submit", "--replicas", 1, "train.py")
    assert code == 0
    assert err.startswith("warning: 1 copy of each block: a node that dies takes the job with it")
    assert err.count("\n") == 1
    assert elasticps("submit", "train.py")[2] == ""


def test_cancel_stops_a_known_job(api, elasticps):
    api.jobs["mnist"] = job("mnist")
    code, _, err = elasticps("cancel", "mnits")
    assert code == 2
    assert "did you mean mnist?" in err
    assert elasticps("cancel", "mnist")[:2] == (0, "mnist: CANCELLED\n")


def test_a_cancelled_job_that_has_not_ended_yet_is_told_as_such(api, elasticps, monkeypatch):
    api.jobs["mnist"] = job("mnist")
    monkeypatch.setattr(client.Api, "cancel", client.Api.job)
    said = "mnist: RUNNING, and is being stopped\n"
    assert elasticps("cancel", "mnist")[:2] == (0, said)


def test_forget_takes_jobs_out_and_says_where_their_checkpoints_stay(api, elasticps):
    for name in ("a", "b", "c"):
        api.jobs[name] = job(name, state="FAILED")
    said = "a: forgotten; its checkpoints stay in /ckpt\n"
    assert elasticps("forget", "a")[:2] == (0, said)
    api.checkpoints["directory"] = ""
    code, out, _ = elasticps("forget", "--json", "b", "c", "b")
    assert code == 0
    rows = [{"job": name, "checkpoint_dir": ""} for name in ("b", "c")]
    assert json.loads(out) == {"jobs": rows}
    assert api.jobs == {}


def test_forget_begins_with_none_where_one_is_unknown(api, elasticps):
    api.jobs["mnist"] = job("mnist", state="FAILED")
    code, _, err = elasticps("forget", "mnist", "mnits")
    assert code == 2
    assert "did you mean mnist?" in err
    assert elasticps("forget")[0] == 2
    assert api.asked("DELETE") == []


def test_forget_ends_at_the_first_that_is_refused_and_tells_what_is_done(api, elasticps):
    for name in ("a", "b", "c"):
        api.jobs[name] = job(name)
    said = {"what": "job b has not ended", "where": None, "field": "job", "limit": "l", "hint": "h"}
    api.errors["/api/v1/jobs/b"] = (400, {"error": said})
    code, out, err = elasticps("forget", "--json", "a", "b", "c")
    assert code == 2
    assert json.loads(out)["jobs"] == [{"job": "a", "checkpoint_dir": "/ckpt"}]
    assert err == "error: job b has not ended (field job) (limit: l)\n  hint: h\n"
    assert [path for path, _ in api.asked("DELETE")] == ["/api/v1/jobs/a", "/api/v1/jobs/b"]


def test_several_strategies_are_sent_as_one_and_shown(api, elasticps, script):
    texts = ["encoder.*=all-reduce", "*=local-sgd:h=4,outer=sgd"]
    options = [item for text in texts for item in ("--strategy", text)]
    assert elasticps("submit", *options, script)[0] == 0
    (_, sent) = api.asked("POST")[-1]
    assert sent["strategy"] == "; ".join(texts)
    api.jobs["mnist"] = job("mnist", strategy="; ".join(texts))
    _, out, _ = elasticps("status")
    assert "mnist: strategy encoder.*=all-reduce; *=local-sgd:h=4,outer=sgd\n" in out


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["encoder.*=all-reduce", "local-sgd"], "'local-sgd' is for no pattern"),
        (["encoder.*=all-reduce", "*=telepathy"], "no plugin named 'telepathy'"),
    ],
)
def test_what_is_no_strategy_is_refused_before_anything_starts(elasticps, script, texts, what):
    options = [item for text in texts for item in ("--strategy", text)]
    code, _, err = elasticps("run", *options, script)
    assert code == 2
    assert what in err
    assert "field strategy" in err


def test_codec_is_passed_on_and_refused_before_anything_is_sent(api, elasticps, script):
    text = "ef+top-k:ratio=0.01+int8"
    assert elasticps("submit", "--codec", text, script)[0] == 0
    ((_, sent),) = api.asked("POST")
    assert sent["codec"] == text
    code, _, err = elasticps("run", "--codec", "ef+int9", script)
    assert code == 2
    assert "no plugin named 'int9' in elasticps.codecs (field codec)" in err
    assert "did you mean int8?" in err


def test_plugins_are_listed_without_a_daemon(capsys):
    assert main(["--api", "http://127.0.0.1:1", "plugins", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["plugins"]
    assert {"strategies", "optimizers", "codecs", "data_policies", "placements"} == {
        row["group"] for row in rows
    }
    assert main(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"optimizers +adamw +elasticps +\d", out)
    assert all(len(row) <= 80 for row in out.splitlines())
