"""What every command keeps: help, exit codes, JSON, 80 columns, no escapes in pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from elasticps.cli.reference import commands, reference
from tests.support.fake_api import FakeApi, job, line, node
from tests.support.terminal import on_terminal

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "elasticps"]
LEAVES = [(path, each) for path, each in commands() if not isinstance(each, click.Group)]
WITHOUT_JSON = {
    ("completion",): "what it prints is a shell's script",
    ("daemon",): "it runs, and answers nothing",
    ("wait",): "it answers by its exit code",
    ("service", "install"): "it says what a root's shell would do, for a person to agree to",
    ("service", "uninstall"): "it says what a root's shell would do, for a person to agree to",
}
LONG_JOB, LONG_NODE = "a-job-with-a-name-of-forty-characters-00", "node-" + "n" * 58
TABLES = [
    ["status"],
    ["nodes"],
    ["jobs"],
    ["rebalance", "--dry-run"],
    ["top", "--count", "1", "--interval", "0.1"],
    ["checkpoint", "list", LONG_JOB],
]
OF_A_JOB = [
    ["cancel", "{}"],
    ["logs", "{}"],
    ["scale", "{}", "--workers", "2"],
    ["checkpoint", "save", "{}"],
    ["checkpoint", "list", "{}"],
]
OF_A_NODE = [["drain", "{}"], ["undrain", "{}"], ["restart", "{}"]]
OF_THE_CLUSTER = [["status"], ["nodes"], ["jobs"], ["rebalance"], ["top"], ["restart", "--rolling"]]


def words(command: list[str], name: str) -> list[str]:
    return [word.format(name) for word in command]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as fake:
        fake.nodes = [node(LONG_NODE, leader=True, usage=usage()), node("n2", usage=None)]
        fake.jobs[LONG_JOB] = job(LONG_JOB, workers=[worker(f"{LONG_NODE}.1", LONG_NODE)])
        move = {"job": LONG_JOB, "block": 7, "source": LONG_NODE, "target": "n2", "bytes": 4096}
        fake.moves = {"moves": [move], "bytes": 4096, "pending_moves": 0}
        row = {"path": "/ckpt/round-00000120", "round": 120, "nbytes": 2048, "created_unix": 1.0}
        fake.checkpoints = {"directory": "/ckpt", "node": LONG_NODE, "checkpoints": [row]}
        yield fake


def usage() -> dict[str, Any]:
    return {
        "at_s": 10.0,
        "cpus": 4,
        "load_1m": 1.25,
        "cpu_busy_s": 100.0,
        "memory_used_bytes": 1 << 30,
        "memory_bytes": 4 << 30,
        "received_bytes": 0,
        "sent_bytes": 0,
    }


def worker(uid: str, node: str, **changes: Any) -> dict[str, Any]:
    return {
        "uid": uid,
        "node": node,
        "state": "running",
        "rank": 0,
        "round": 1,
        "step_s": 0.1,
        "compute_s": 0.05,
        "reason": "",
        **changes,
    }


# Help


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_tells_its_exit_codes(path: tuple[str, ...], command: click.Command) -> None:
    assert re.search(r"(?m)^\s*Exit codes:\n\s+0 +\S", command.help or ""), path


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_has_json_or_a_reason(path: tuple[str, ...], command: click.Command) -> None:
    options = {option for each in command.params for option in each.opts}
    assert ("--json" in options) != (path in WITHOUT_JSON)


def test_the_page_on_the_command_line_is_what_the_commands_say() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    fresh = "`python -m elasticps.cli.reference > docs/cli.md` writes it anew"
    for path, _ in commands():
        assert f"\n## elasticps {' '.join(path)}\n" in page, fresh
    assert page.split() == reference().split(), fresh


# What is printed


@pytest.mark.parametrize("args", TABLES, ids=" ".join)
def test_tables_fit_80_columns_and_leave_nothing_out(args: list[str], elasticps: Command) -> None:
    code, out, error = elasticps(*args)
    assert code == 0, error
    assert out
    assert all(len(row) <= 80 for row in out.splitlines()), out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    assert "\x1b" not in out + error


@pytest.mark.parametrize("args", TABLES, ids=" ".join)
def test_long_names_are_whole_where_there_is_room_and_in_json(
    args: list[str], elasticps: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, document, _ = elasticps(*args, "--json")
    json.loads(document)
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = elasticps(*args)
    for name in (LONG_JOB, LONG_NODE):
        assert (name in out) == (name in document) or name in document


@pytest.mark.parametrize(
    "args",
    [
        ["drain", "n2", "--no-wait"],
        ["undrain", "n2"],
        ["cancel", LONG_JOB],
        ["scale", LONG_JOB, "--workers", "2", "--no-wait"],
        ["checkpoint", "save", LONG_JOB, "--no-wait"],
        ["token", "create", "alice", "--role", "read", "--tokens", "{}/tokens.json"],
        ["certs", "init", "{}/certs", "--node", "a=127.0.0.1"],
        ["plugins", "new", "mine", "--kind", "codec", "--directory", "{}/mine"],
        ["plugins", "list"],
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_json_is_one_document(args: list[str], elasticps: Command, tmp_path: Path) -> None:
    code, out, error = elasticps(*words(args, str(tmp_path)), "--json")
    assert code == 0, error
    assert json.loads(out)


def test_json_of_a_stream_is_one_document_a_line(api: FakeApi, elasticps: Command) -> None:
    code, out, _ = elasticps("top", "--count", "2", "--interval", "0.05", "--json")
    assert code == 0
    assert [json.loads(line)["cluster"] for line in out.splitlines()] == ["lab", "lab"]


# What goes wrong


@pytest.mark.parametrize("args", [*OF_THE_CLUSTER, *OF_A_JOB, *OF_A_NODE], ids=" ".join)
def test_an_unreachable_daemon_exits_1_with_a_hint(
    args: list[str], api: FakeApi, elasticps: Command
) -> None:
    api.close()
    code, out, error = elasticps(*words(args, "n2"))
    assert (code, out) == (1, "")
    assert "is the daemon running?" in error


@pytest.mark.parametrize(
    ("args", "name", "near"),
    [
        *((args, LONG_JOB.replace("forty", "fourty"), LONG_JOB) for args in OF_A_JOB),
        *((args, "n22", "n2") for args in OF_A_NODE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_name_exits_2_and_names_the_nearest(
    args: list[str], name: str, near: str, api: FakeApi, elasticps: Command
) -> None:
    code, out, error = elasticps(*words(args, name))
    assert (code, out) == (2, "")
    assert f"did you mean {near}?" in error
    assert not api.asked("POST")
    assert not api.asked("DELETE")


@pytest.mark.parametrize(
    "args",
    [
        ["top", "--json", "--count", "100000"],
        ["logs", "-f", LONG_JOB],
        ["scale", LONG_JOB, "--workers", "5"],
        ["checkpoint", "save", LONG_JOB],
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_ctrl_c_ends_what_waits_with_130_and_nothing_else(args: list[str], api: FakeApi) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--api", api.url, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(api.requests) < 3 and time.monotonic() < deadline and process.poll() is None:
        if args[0] == "logs" and len(api.requests) == 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "error" not in error


# scale, logs, top, completion


def test_scale_asks_and_waits_until_the_workers_are_there(api: FakeApi, elasticps: Command) -> None:
    two = [worker("n1.1", "n1"), worker("n2.1", "n2", rank=1)]
    api.career = [
        {"reason": "1 worker"},
        {"workers_asked": 2, "workers_planned": 2, "reason": "1 of 2 workers: 1 to start on n2"},
        {"workers": two, "reason": "2 workers"},
    ]
    # The first look is that of the status, which knows the name.
    code, out, _ = elasticps("scale", LONG_JOB, "--workers", "2")
    assert (code, out) == (0, f"{LONG_JOB}: 2 workers\n")
    assert api.asked("POST") == [(f"/api/v1/jobs/{LONG_JOB}/scale", {"workers": 2})]


def test_scale_tells_why_there_are_fewer(api: FakeApi, elasticps: Command) -> None:
    why = "1 of 5 workers: no node is free (n1 runs 1): start a daemon on another machine"
    api.career = [{}, {"workers_asked": 5, "workers_planned": 1, "reason": why}]
    assert elasticps("scale", LONG_JOB, "--workers", "5")[:2] == (0, f"{LONG_JOB}: {why}\n")


def test_scale_that_takes_too_long_or_comes_too_late_fails(
    api: FakeApi, elasticps: Command
) -> None:
    code, _, error = elasticps("scale", LONG_JOB, "--workers", "2", "--timeout", "0.1")
    assert code == 1
    assert "not 2 workers within 0.1 s" in error
    api.jobs[LONG_JOB] |= {"state": "SUCCEEDED", "reason": "done"}
    code, _, error = elasticps("scale", LONG_JOB, "--workers", "2")
    assert code == 1
    assert "the job has ended: SUCCEEDED, done" in error
    assert elasticps("scale", LONG_JOB, "--workers", "0")[0] == 2


def row(text: str, uid: str, unix_s: float) -> dict[str, Any]:
    return {"node": "n1", "worker": uid, "stream": "stdout", "text": text, "unix_s": unix_s}


def test_logs_of_one_rank_and_of_late(api: FakeApi, elasticps: Command) -> None:
    api.jobs[LONG_JOB] |= {"workers": [worker("n1.1", "n1"), worker("n1.2", "n1", rank=1)]}
    now = time.time()
    api.lines = [row("old", "n1.2", now - 90), row("new", "n1.2", now), row("main", "n1.1", now)]
    assert elasticps("logs", LONG_JOB, "--rank", "1")[1] == "[n1] old\n[n1] new\n"
    assert elasticps("logs", LONG_JOB, "--since", "1m")[1] == "[n1] new\n[n1] main\n"
    code, out, _ = elasticps("logs", LONG_JOB, "--since", "1m", "--rank", "0", "--json")
    assert code == 0
    assert json.loads(out)["text"] == "main"
    code, _, error = elasticps("logs", LONG_JOB, "--rank", "7")
    assert code == 2
    assert "limit: 0, 1" in error
    assert elasticps("logs", LONG_JOB, "--since", "soon")[0] == 2


def test_logs_of_one_rank_outlive_the_job_for_as_long_as_a_daemon_keeps_them(
    api: FakeApi, elasticps: Command
) -> None:
    api.jobs[LONG_JOB] |= {"state": "SUCCEEDED", "workers": []}
    left_out = line("... 7 lines left out") | {"worker": ""}
    api.lines = [left_out, line("main", rank=0), line("first", rank=1), line("second", rank=1)]
    code, out, _ = elasticps("logs", LONG_JOB, "--rank", "1")
    assert (code, out) == (0, "[n1] ... 7 lines left out\n[n1] first\n[n1] second\n")
    assert elasticps("logs", LONG_JOB, "--rank", "1", "--since", "1s")[0] == 0
    code, _, error = elasticps("logs", "-f", LONG_JOB, "--rank", "7")
    assert code == 2
    assert "no daemon has a line of its rank 7 any more" in error
    assert "log_dir" in error


def test_top_names_the_straggler_and_shows_what_nodes_do(api: FakeApi, elasticps: Command) -> None:
    team = [worker(f"n1.{n}", "n1", rank=n, round=9 + n, compute_s=0.01) for n in range(3)]
    api.jobs[LONG_JOB] |= {"workers": [*team, worker("n2.9", "n2", rank=3, compute_s=0.5, round=9)]}
    api.jobs["gone"] = job("gone", state="FAILED")
    _, out, _ = elasticps("top", "--interval", "0.05", "--json")
    view = json.loads(out)
    (shown,) = view["jobs"]
    assert (shown["slowest"], shown["slowest_s"], shown["median_s"]) == ("n2.9", 0.5, 0.01)
    assert (shown["staleness"], shown["workers"]) == (2, 4)
    first, second = view["nodes"]
    assert (first["memory"], first["load_1m"]) == (0.25, 1.25)
    assert second["memory"] is None
    _, out, _ = elasticps("top", "--interval", "0.05")
    assert "500 ms of 10 ms !" in out
    assert "25%" in out


def test_top_on_a_terminal_without_colour_has_no_colour(api: FakeApi) -> None:
    args = ["--api", api.url, "top", "--count", "2", "--interval", "0.05"]
    written = on_terminal(args, NO_COLOR="1", COLUMNS="80")
    assert "CPU" in written
    assert not re.search("\x1b\\[[0-9;]*3[0-9]m", written)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, elasticps: Command) -> None:
    code, out, error = elasticps("completion", shell)
    assert code == 0, error
    assert "_ELASTICPS_COMPLETE" in out


def completed(api: FakeApi, typed: str) -> list[str]:
    done = subprocess.run(
        COMMAND,
        env={
            **os.environ,
            "ELASTICPS_API": api.url,
            "_ELASTICPS_COMPLETE": "bash_complete",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - (not typed.endswith(" "))),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_tab_completes_commands_jobs_and_nodes_and_is_silent_where_nobody_answers(
    api: FakeApi,
) -> None:
    assert completed(api, "elasticps sca") == ["scale"]
    assert completed(api, "elasticps cancel ") == [LONG_JOB]
    assert completed(api, "elasticps checkpoint save a-j") == [LONG_JOB]
    assert completed(api, "elasticps forget ") == []  # it has not ended
    assert completed(api, "elasticps drain n") == ["n2", LONG_NODE]
    assert completed(api, "elasticps drain x") == []
    api.close()
    assert completed(api, "elasticps cancel ") == []
