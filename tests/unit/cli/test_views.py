"""Status, nodes, jobs and logs: what they show of a cluster, and where."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from elasticps.cli.output import human_bytes
from tests.support.fake_api import job, line, node, verdict
from tests.support.terminal import COMMAND, on_terminal


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
