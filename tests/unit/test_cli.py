"""The command line against a fake of the HTTP API: what it asks, prints, and exits with."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from elasticps.cli import client
from elasticps.cli.main import cli, main
from elasticps.cli.options import Settings
from elasticps.cli.output import human_bytes
from tests.support.fake_api import FakeApi, job, line, node, verdict

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from elasticps.cli.main import main; sys.exit(main())",
]


@pytest.fixture
def api():
    with FakeApi() as fake:
        yield fake


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ELASTICPS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def elasticps(api, capsys):
    """Runs a command on the fake API: its exit code, its stdout and its stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        code = main(["--api", api.url, *map(str, args)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text("")
    return path


def on_terminal(args: list[str], **env: str) -> str:
    """What the command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **env},
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


def commands(group: click.Group = cli, path: tuple[str, ...] = ()):
    for name, command in sorted(group.commands.items()):
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


# Help, and what is loaded for it


@pytest.mark.parametrize("path", [(), *commands()], ids=" ".join)
def test_help_of_every_command_shows_an_example_as_it_was_written(path, capsys):
    assert main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"(?m)^  Example:\n    .*elasticps {' '.join(path)}", out), out
    assert all(len(row) <= 80 for row in out.splitlines())


def test_help_of_the_group_tells_the_exit_codes(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert re.search(rf"(?m)^    {code}", out)


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["status"], ["logs", "-f", "mnist"]])
def test_heavy_modules_are_not_imported(args, api):
    api.jobs["mnist"] = job("mnist", state="SUCCEEDED")
    check = (
        "import sys\n"
        "from elasticps.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "bad = ['torch', 'grpc', 'aetcd', 'elasticps.server', 'elasticps.worker',\n"
        "       'elasticps.wire', 'elasticps.store']\n"
        "bad += ['aiohttp', 'rich'] if '-' in sys.argv[-1][:1] else []\n"
        "sys.exit(code or ', '.join(name for name in bad if name in sys.modules) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", check, *args],
        env={**os.environ, "ELASTICPS_API": api.url},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"elasticps \d+\.\d+\.\d+\n", capsys.readouterr().out)


# Looking


def test_status_shows_cluster_nodes_and_jobs_within_80_columns(api, elasticps):
    api.nodes += [node("a-machine-with-quite-a-long-name-" + "x" * 29, reachable=False)]
    api.jobs["mnist"] = job("mnist", pending_moves=3)
    api.jobs["gpt"] = job(
        "gpt",
        state="FAILED",
        round=None,
        metrics={},
        reason="worker n2.4: ValueError: " + "no " * 40,
    )
    code, out, err = elasticps("status")
    assert (code, err) == (0, "")
    assert all(len(row) <= 80 for row in out.splitlines()), out
    assert out.startswith("cluster lab: leader n1, 3 nodes, 2 jobs, elasticps 0.1.0\n")
    for shown in ("n1 *", "100.0 MiB", "loss 0.25", "36 (3", "FAILED", "ValueError", "RUNNING"):
        assert shown in out
    assert "".join(re.findall("[x]+", out)).count("x") == 29  # a long name is folded, not cut


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_shows_what_a_row_is_and_says_which_columns_it_has_no_room_for(
    width, api, elasticps, monkeypatch
):
    monkeypatch.setenv("COLUMNS", str(width))
    api.jobs["digits"] = job("digits", reason="2 of 3 workers: no node is free")
    out = elasticps("status")[1]
    assert all(len(row) <= width for row in out.splitlines()), out
    for whole in ("NODE", "STATE", "n1 *", "ready", "JOB", "REASON", "digits", "RUNNING"):
        assert whole in out, out
    told = " ".join(out.split())
    assert "(too narrow for" in told, out
    assert told.count("RESTARTS") == 1, out
    top = elasticps("top", "--interval", "0.1", "--count", "1")[1]
    assert all(len(row) <= width for row in top.splitlines()), top
    assert re.search(r"(?m)^n1 \*", top), top


@pytest.mark.parametrize("command", ["status", "status --json", "--help", "plugins list"])
def test_a_closed_stdout_is_no_bug_of_ours(command, api):
    shell = f'exec "$@" --api {api.url} {command} >&-'
    ran = subprocess.run(["/bin/sh", "-c", shell, "sh", *COMMAND], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_status_shows_what_a_codec_saves(api, elasticps):
    sent = {"pushed_bytes": 3 << 20, "gradient_bytes": 100 << 20}
    api.jobs["mnist"] = job("mnist", codec="top-k+int8", **sent)
    api.jobs["plain"] = job("plain", pushed_bytes=5, gradient_bytes=5)
    out = elasticps("status")[1]
    assert "mnist: pushed 3.0 MiB for 100.0 MiB of gradients (codec top-k+int8)\n" in out
    assert "plain: pushed" not in out


def test_status_of_an_empty_cluster_says_so(api, elasticps):
    api.nodes, api.leader = [], None
    _, out, _ = elasticps("status")
    for shown in ("no leader", "no nodes", "no jobs"):
        assert shown in out


@pytest.mark.parametrize("command", ["status", "nodes", "jobs"])
def test_json_is_one_document_of_the_known_fields(command, api, elasticps):
    api.jobs["mnist"] = job("mnist", metrics={"loss": None})
    code, out, _ = elasticps(command, "--json")
    document = json.loads(out)
    assert code == 0
    if command != "jobs":
        assert document["nodes"] == api.nodes
    if command != "nodes":
        assert document["jobs"] == [api.jobs["mnist"]]
    assert "from_the_future" not in document


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), "one two three four five"),
        (("--active",), "one three five"),
        (("--state", "failed"), "two four"),
    ],
)
def test_jobs_are_filtered_over_all_pages(options, shown, api, elasticps):
    for number, name in enumerate(("one", "two", "three", "four", "five")):
        api.jobs[name] = job(name, state="FAILED" if number % 2 else "RUNNING")
    code, out, _ = elasticps("jobs", "--json", *options)
    assert code == 0
    assert [each["job"] for each in json.loads(out)["jobs"]] == shown.split()


def test_jobs_that_the_status_leaves_out_are_counted_and_still_known(api, elasticps):
    api.jobs["mnist"] = job("mnist", state="SUCCEEDED")
    api.ended_left_out = 7
    assert "(7 jobs that ended before; `elasticps jobs`)" in " ".join(
        elasticps("status")[1].split()
    )
    assert elasticps("logs", "mnist")[0] == 0
    code, _, err = elasticps("logs", "mnisst")
    assert code == 2
    assert "did you mean mnist?" in err


def test_a_loss_that_is_no_number_is_shown(api, elasticps):
    api.jobs["mnist"] = job("mnist", metrics={"loss": None})
    assert "loss nan" in elasticps("jobs")[1]


def test_a_broken_audit_is_shown(api, elasticps):
    api.jobs["mnist"] = job("mnist", verdict=verdict(9, lost=1, workers=2))
    _, out, _ = elasticps("jobs")
    assert "mnist: audit: 9 pushes of 2 workers acknowledged, 1 lost, 0 duplicated so far" in out


def test_no_text_of_a_job_reaches_the_terminal_as_a_command(api, elasticps):
    api.jobs["mnist"] = job("mnist", reason="\x1b[2J[red]oh :smile:\r\n\x07[/red]")
    _, out, _ = elasticps("status")
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\r" not in out
    assert "[red]oh" in out
    assert ":smile:" in out


def test_colours_are_for_terminals_that_want_them(api):
    args = ["--api", api.url, "nodes"]
    colour = re.compile(r"\x1b\[(\d+;)*3\d")
    assert colour.search(on_terminal(args))
    assert not colour.search(on_terminal(args, NO_COLOR="1"))
    piped = subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=True)
    assert "\x1b" not in piped.stdout


@pytest.mark.parametrize(
    ("count", "reader", "seen"), [(2000, "head -n 1", "NODE"), (1, "(exec <&-; sleep 3)", "")]
)
def test_a_reader_that_goes_away_is_no_traceback(count, reader, seen, api):
    api.nodes = [node(f"n{number}") for number in range(count)]
    shell = ["bash", "-o", "pipefail", "-c", f'"$@" | {reader}', "-"]
    command = [*shell, *COMMAND, "--api", api.url, "nodes"]
    # Unbuffered, Python itself takes a short write for a whole one, and sees no error.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.startswith(seen)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_the_encoding_cannot_spell_is_replaced(api):
    api.jobs["mnist"] = job("mnist", reason="größer")
    done = subprocess.run(
        [*COMMAND, "--api", api.url, "jobs"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr??er" in done.stdout


# Logs


def test_lines_go_to_the_stream_they_came_from(api, elasticps):
    api.jobs["mnist"] = job("mnist", state="SUCCEEDED")
    api.lines = [line("one"), line("warning", stream="stderr"), line("two", node="n2")]
    code, out, err = elasticps("logs", "mnist", "--follow")
    assert (code, out, err) == (0, "[n1] one\n[n2] two\n", "[n1] warning\n")


def test_logs_as_json_are_a_document_a_line(api, elasticps):
    api.jobs["mnist"] = job("mnist")
    api.lines = [line("\x00" * (64 << 10)), line("two")]
    _, out, _ = elasticps("logs", "mnist", "--json")
    assert [json.loads(row) for row in out.splitlines()] == api.lines


def test_logs_that_break_off_are_an_error(api):
    api.jobs["mnist"] = job("mnist")
    api.lines = [line("one")]
    command = [*COMMAND, "--api", api.url, "logs", "-f", "mnist"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[n1] one\n"
        api.close()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the daemon's answer broke off" in err


# Operating


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


# Bad input and bad luck


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


def test_no_command_at_all_shows_the_help(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (4 << 20, "4.0 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes_are_for_people(size, text):
    assert human_bytes(size) == text


def test_script_of_the_entry_point_runs():
    command = Path(sys.executable).with_name("elasticps")
    done = subprocess.run([command, "nodes", "--nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--nope" in done.stderr
