"""``elasticps run`` on a fake local cluster: output, exit codes, and what it leaves."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elasticps.cli.answers import Submission
from elasticps.cli.client import Api
from elasticps.cli.progress import Progress
from elasticps.cli.run import _follow
from tests.support.checkpoints import write_round
from tests.support.fake_api import FakeApi, line, node, verdict
from tests.support.processes import wait_until

ROOT = Path(__file__).parents[3]
TRACE = 'Traceback (most recent call last):\n  File "train.py", line 3\nValueError: oops\n'
INCOMPLETE = "audit incomplete: 1 of 3 workers did not end in order"


@pytest.fixture
def api():
    with FakeApi() as fake:
        fake.nodes = [node("n1", http=fake.url)]
        yield fake


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("")
    return path


@pytest.fixture
def marks(tmp_path):
    path = tmp_path / "marks"
    path.write_text("")
    return path


@pytest.fixture
def start(api, marks):
    """Starts ``elasticps run`` with these arguments; it is killed when the test ends."""
    processes = []

    def run(*args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.support.fake_run", api.url, marks, "run", *args]
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={name: item for name, item in os.environ.items() if "ELASTICPS" not in name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_job_that_succeeds(api, start, script, marks, tmp_path):
    api.career = [{}, {"state": "RUNNING", "round": 7, "metrics": {"loss": 0.5}}]
    api.career += [{"state": "SUCCEEDED", "round": 9}]
    api.lines = [line("hello"), line("hm", stream="stderr"), line("there", node="n2")]
    code, out, err = finish(
        start(
            "--nodes", 2, "--workers-per-node", 3, "--keep-logs", tmp_path / "kept", script, "--lr"
        )
    )
    assert (code, out) == (0, "[n1] hello\n[n2] there\n")
    assert "[n1] hm\n" in err
    assert f"elasticps --api {api.url} status" in err
    assert "job train-1 succeeded after 9 rounds" in err
    assert "\x1b" not in err
    ((path, body),) = api.asked("POST")
    assert path == "/api/v1/jobs"
    assert (body["argv"], body["start_workers"]) == ([str(script), "--lr"], 6)
    made, *life = marks.read_text().splitlines()
    assert life == ["opened", "closed"]
    assert "('nodes', 2), ('workers_per_node', 3)" in made
    assert str(tmp_path / "kept") in made


def test_a_checkpoint_that_cannot_be_resumed_is_refused_before_anything_starts(
    start, script, marks, tmp_path
):
    for number in (4, 5):
        damaged = write_round(tmp_path / "damaged", number) / "manifest.json"
        damaged.write_bytes(damaged.read_bytes().replace(b'"seed": 3', b'"seed": 4'))
    for place, field in ((tmp_path / "nowhere", "resume"), (tmp_path / "damaged", "digest")):
        code, _, err = finish(start("--resume", place, script))
        assert code == 2
        assert f"field {field}" in err
        assert str(place) in err
    assert marks.read_text() == ""


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(api, start, script, tmp_path):
    api.career = [{"state": "SUCCEEDED"}]
    write_round(tmp_path, 4)
    (write_round(tmp_path, 5) / "manifest.json").write_bytes(b"{")
    code, _, err = finish(start("--resume", tmp_path, script))
    assert code == 0
    assert f"warning: {tmp_path / 'round-00000005'} is passed over" in err


def test_a_folder_above_is_written_in_full(api, start, script):
    api.career = [{"state": "SUCCEEDED"}]
    assert finish(start("--checkpoint-dir", "../saved", script))[0] == 0
    ((_, body),) = api.asked("POST")
    assert body["checkpoint_dir"] == str(ROOT.parent / "saved")


@pytest.mark.parametrize("state", ["SUCCEEDED", "CANCELLED"])
def test_checkpoints_that_failed_show_at_the_end(state, api, start, script):
    attempts = {"made": 1, "failed": 3, "error": "No space left on device"}
    api.career = [{"state": state, "round": 80, "checkpoint_attempts": attempts}]
    _, _, err = finish(start(script))
    failed = "3 of 4 checkpoints failed: No space left on device"
    shown = f"job train-1 succeeded after 80 rounds; {failed}" if state == "SUCCEEDED" else failed
    assert f"\n{shown}\n" in err


def test_the_last_line_is_the_job_with_json(api, start, script):
    api.career = [{"state": "SUCCEEDED"}]
    api.lines = [line("hello")]
    code, out, _ = finish(start("--json", script))
    assert code == 0
    assert json.loads(out.splitlines()[-1])["job"] == "train-1"


def test_a_failure_is_shown_once_with_its_node_and_worker(api, start, script, marks):
    failure = {"node": "n2", "worker": "n2.1", "reason": "ValueError: oops", "traceback": TRACE}
    api.career = [{"state": "FAILED", "reason": "worker n2.1: oops", "failure": failure}]
    code, _, err = finish(start(script))
    assert code == 1
    assert err.count("Traceback") == 1
    assert f"worker n2.1 on node n2 failed: ValueError: oops\n\n{TRACE}" in err
    assert "error: job train-1: FAILED: worker n2.1: oops" in err
    assert marks.read_text().endswith("closed\n")


def test_a_job_that_another_cancelled_exits_1(api, start, script):
    api.career = [{"state": "CANCELLED", "reason": "cancelled by request"}]
    code, _, err = finish(start(script))
    assert code == 1
    assert "CANCELLED: cancelled by request" in err


def test_an_audit_that_found_a_loss_exits_1(api, start, script):
    api.career = [{"state": "SUCCEEDED", "verdict": verdict(9, lost=1, workers=2)}]
    code, _, err = finish(start("--audit", script))
    assert code == 1
    assert "audit: 9 pushes of 2 workers acknowledged, 1 lost, 0 duplicated" in err
    assert "error: job train-1: its pushes were not applied exactly once" in err


@pytest.mark.parametrize(
    ("state", "found", "told"),
    [
        (
            "SUCCEEDED",
            verdict(240, workers=3),
            "audit: 240 pushes of 3 workers acknowledged, 0 lost, 0 duplicated",
        ),
        (
            "SUCCEEDED",
            verdict(240, workers=2, unaudited=1),
            f"{INCOMPLETE}; 240 pushes of 2 workers acknowledged, 0 lost, 0 duplicated",
        ),
        (
            "FAILED",
            verdict(240, workers=2, unaudited=1),
            f"{INCOMPLETE}; no verdict",
        ),
        ("CANCELLED", verdict(0), "audit: no verdict"),
        (
            "FAILED",
            verdict(240, lost=1, workers=2, unaudited=1),
            f"{INCOMPLETE}; 240 pushes of 2 workers acknowledged, 1 lost, 0 duplicated",
        ),
    ],
)
def test_an_audit_says_of_whom_it_is(state, found, told, api, start, script):
    api.career = [{"state": state, "verdict": found}]
    _, _, err = finish(start("--audit", script))
    assert [line for line in err.splitlines() if "audit" in line] == [told]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_cancels_the_job_and_closes_the_cluster(number, code, api, start, script, marks):
    api.lines = [line("hello")]
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "[n1] hello\n"
    process.send_signal(number)
    process.send_signal(number)
    shown, _, err = finish(process)
    assert shown == code
    assert "Traceback" not in err
    assert api.jobs["train-1"]["state"] == "CANCELLED"
    assert marks.read_text().endswith("closed\n")


def test_a_signal_before_the_job_is_submitted_closes_the_cluster(api, start, script, marks):
    api.holding = True
    process = start(script)
    wait_until(lambda: api.asked("POST"))
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, marks.read_text().splitlines()[1:]) == (130, ["opened", "closed"])
    assert "Traceback" not in err


def test_an_unknown_strategy_is_refused_before_anything_starts(start, script, marks):
    code, _, err = finish(start("--strategy", "x", script))
    assert code == 2
    assert "no plugin named 'x' in elasticps.strategies (field strategy)" in err
    assert "opened" not in marks.read_text()


def test_a_refused_job_exits_2_and_closes_the_cluster(api, start, script, marks):
    answer = {"error": {"what": "no such strategy", "field": "strategy"}}
    api.errors["/api/v1/jobs"] = (400, answer)
    code, _, err = finish(start(script))
    assert code == 2
    assert "error: no such strategy (field strategy)" in err
    assert marks.read_text().endswith("closed\n")


def test_options_that_do_not_go_together_are_refused_before_anything_starts(start, script, marks):
    code, _, err = finish(start("--nodes", 2, "--replicas", 2, "--min-insync", 3, script))
    assert code == 2
    assert "min_insync of 3 (field min_insync) (limit: 1 to 2)" in err
    assert "opened" not in marks.read_text()


def test_the_job_is_followed_through_another_daemon_when_the_first_dies(api, start, script):
    with FakeApi() as second:
        api.nodes = [node("n1", http=api.url), node("n2", http=second.url)]
        process = start("--nodes", 2, script)
        wait_until(lambda: len(api.asked("GET")) > 2)
        second.nodes, second.jobs = api.nodes, api.jobs
        second.lines = [line("still here", node="n2")]
        api.close()
        api.jobs["train-1"]["workers"] += [{**api.jobs["train-1"]["workers"][0], "node": "n2"}]
        api.jobs["train-1"]["state"] = "SUCCEEDED"
        code, out, err = finish(process)
    assert (code, out) == (0, "[n2] still here\n")
    assert "warning: node n1 is gone, its lines end here" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_progress_never_goes_back_to_an_earlier_round(api):
    """The worker that was furthest may be killed, and the next one still have to catch up."""
    shown = Kept()
    api.career = [{"state": "RUNNING", "round": number} for number in (None, 63, 39, None, 64)]
    api.career += [{"state": "SUCCEEDED"}]
    async with Api(api.url) as client:
        wanted = Submission(argv=("/train.py",), cwd="/", start_workers=1)
        submitted = await client.submit(wanted)
        await _follow(client, submitted.job, shown)
    rounds = [re.findall(r"round (\d+)", text) for text in shown.texts]
    assert rounds == [[], ["63"], ["63"], ["63"], ["64"]]


async def test_progress_tells_that_the_placement_is_not_heard(api):
    shown = Kept()
    reason = "2 workers; placement near is not heard, balanced is used meanwhile: no such zone"
    api.career = [{"state": "RUNNING", "round": 9, "reason": reason}, {"state": "SUCCEEDED"}]
    async with Api(api.url) as client:
        wanted = Submission(argv=("/train.py",), cwd="/", start_workers=1)
        submitted = await client.submit(wanted)
        await _follow(client, submitted.job, shown)
    assert reason in shown.texts[0]


class Kept(Progress):
    """Remembers what it was to show."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.texts: list[str] = []

    def show(self, text: str) -> None:
        self.texts.append(text)


def test_progress_in_a_pipe_is_a_line_at_most_every_two_seconds():
    pipe = io.StringIO()
    with Progress(pipe) as progress:
        for number in range(100):
            progress.show(f"round {number}")
        with progress.above():
            pipe.write("a line\n")
    assert pipe.getvalue() == "round 0\na line\n"


def test_progress_on_a_terminal_stays_in_its_line_and_is_gone_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "10")
    terminal = Terminal()
    with Progress(terminal) as progress:
        progress.show("round 1, loss 2")
        with progress.above():
            terminal.write("a line\n")
    erase = "\r\x1b[2K"
    assert terminal.getvalue() == f"{erase}round 1, {erase}a line\n{erase}round 1, {erase}"
