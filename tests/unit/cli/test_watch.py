"""``status --watch`` and ``events`` on a fake of the API: what is shown, where, and resumed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from elasticps.cli import client, watch
from tests.support.fake_api import FakeApi, Json, job, node

PROGRAM = (
    "import sys; from elasticps.cli import client; client.PATIENCE_S = 0.0;"
    "from elasticps.cli.main import main; sys.exit(main())"
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command gives up as soon as the fake has no more streams."""
    monkeypatch.setattr(client, "PATIENCE_S", 0.0)
    monkeypatch.setattr(watch, "RETRY_S", 0.01)
    monkeypatch.setenv("TZ", "UTC")


def event(number: int, what: str, **changes: Any) -> Json:
    about = {"kind": "job", "node": None, "job": "mnist", "severity": "info", **changes}
    return {"id": f"0123abcd-{number}", "unix_s": 1_700_000_000.0 + number, "what": what, **about}


def frame(kind: str, data: object, id_: str = "") -> bytes:
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def happened(number: int, what: str, **changes: Any) -> bytes:
    made = event(number, what, **changes)
    return frame("event", made, made["id"])


def status(*jobs: Json) -> bytes:
    document = {"cluster": "lab", "version": "0.1.0", "leader": "n1", "nodes": [node("n1")]}
    return frame("status", document | {"jobs": list(jobs)})


def test_events_are_lines_of_time_kind_and_what(api: FakeApi, elasticps: Run) -> None:
    api.events = [
        event(1, "mnist submitted: train.py"),
        event(2, "node b left: killed", kind="leave", node="b", job=None, severity="error"),
    ]
    code, out, _ = elasticps("events")
    assert code == 0
    first, second = out.splitlines()
    assert first.endswith("  job        mnist submitted: train.py")
    assert second.endswith("  leave      node b left: killed")
    assert first.startswith("2023-11-1")
    assert elasticps("events", "--last", "1")[1] == second + "\n"
    assert elasticps("events", "-n", "0")[1] == ""


def test_events_as_json_are_one_document_a_line(api: FakeApi, elasticps: Run) -> None:
    api.events = [event(1, "one"), event(2, "two")]
    _, out, _ = elasticps("events", "--json")
    assert [json.loads(line) for line in out.splitlines()] == api.events


def test_followed_events_go_on_from_the_past_and_over_a_break_of_the_connection(
    api: FakeApi, elasticps: Run
) -> None:
    api.events = [event(9, "past")]
    api.streams = [
        [status(), happened(10, "first"), b": keep-alive\n\n", happened(11, "second")[:20]],
        [happened(11, "second"), frame("missed", {"what": "some"}), happened(12, "third")],
    ]
    code, out, err = elasticps("events", "-f", "--job", "mnist")
    assert [line.split()[-1] for line in out.splitlines()] == ["past", "first", "second", "third"]
    assert api.resumed == ["0123abcd-9", "0123abcd-10", "0123abcd-12"]
    assert "earlier events may be missing" in err
    assert code == 1
    assert "no more streams" in err


def test_events_of_a_job_that_is_not_there_are_no_silence(api: FakeApi, elasticps: Run) -> None:
    api.jobs["mnist"] = job("mnist")
    code, out, err = elasticps("events", "--job", "mnits")
    assert (code, out) == (2, "")
    assert "did you mean mnist?" in err
    assert elasticps("events", "--job", "mnist") == (0, "", "")
    assert "there is no job later yet" in elasticps("events", "-f", "--job", "later")[2]


def test_stream_that_cannot_be_had_is_told_at_once(api: FakeApi, elasticps: Run) -> None:
    code, out, err = elasticps("status", "--watch")
    assert (code, out) == (1, "")
    assert "no more streams" in err


def test_watched_status_in_a_pipe_is_a_block_a_change(api: FakeApi, elasticps: Run) -> None:
    api.streams = [[status(), status(job("mnist", round=7))]]
    _, out, _ = elasticps("status", "--watch")
    assert "\x1b" not in out
    first, second = out.split("\ncluster lab")
    assert "no jobs" in first
    assert "mnist" in second


def test_watched_status_as_json_is_one_document_a_line(api: FakeApi, elasticps: Run) -> None:
    api.streams = [[status(), status(job("mnist"))]]
    _, out, _ = elasticps("status", "-w", "--json")
    assert [len(json.loads(line)["jobs"]) for line in out.splitlines()] == [0, 1]


def test_answer_that_is_no_status_is_an_error_and_no_traceback(
    api: FakeApi, elasticps: Run
) -> None:
    api.streams = [[frame("status", {"cluster": 1})]]
    code, _, err = elasticps("status", "--watch")
    assert code == 1
    assert "the stream is not understood" in err


def test_terminal_is_drawn_over_in_place_and_no_escape_of_a_name_reaches_it(api: FakeApi) -> None:
    api.streams = [[status(), status(job("mnist", reason="red\x1b[2Jalert"))]]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--api", api.url, "status", "--watch"],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    process.wait()
    assert written.count(b"\x1b[H") == 2
    assert written.count(b"\x1b[2J") == 1  # once, at the beginning
    assert b"mnist" in written.rpartition(b"\x1b[H")[2]
