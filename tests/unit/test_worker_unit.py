"""A worker as a systemd unit: what the daemon hands over, and to whom nothing is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from elasticps.core.ids import WorkerId
from elasticps.daemon.access import is_of_unit
from elasticps.daemon.unit_child import launch_file, main_process, unit_child
from elasticps.wire.machine import this_machine
from elasticps.wire.peer_process import PeerProcess
from elasticps.worker.launch import ScriptFailure
from elasticps.worker.unit import Ended, Launch, ended

WORKER = WorkerId(7)
SHOWS = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["JOB"], os.environ["ELASTICPS_SOCKETS"]]))
raise ValueError("as it was meant")
"""


def test_nothing_of_the_job_is_in_the_arguments_and_the_environment_of_the_daemons_child(tmp_path):
    launch = Launch(argv=("/s.py",), env={"LD_PRELOAD": "/evil.so", "PATH": "/evil"}, cwd="/evil")
    spec = unit_child("job.1", WORKER, launch, tmp_path, tmp_path / "failure")
    assert "evil" not in " ".join([*spec.argv, *spec.env.values(), str(spec.cwd)])
    path = launch_file(WORKER, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    told = msgspec.json.decode(path.read_bytes(), type=Launch)
    assert (told.argv, told.env["LD_PRELOAD"], told.cwd) == (("/s.py",), "/evil.so", "/evil")


@pytest.fixture
def unit_process():
    """A process that heads a group of its own, as systemd starts a unit's, and one of that group.

    By the kernel's word, as the daemon hears it from a socket.
    """
    script = (
        "import os, time; child = os.fork(); child and print(child, flush=True); time.sleep(99)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        child, user = int(process.stdout.readline()), os.geteuid()
        yield PeerProcess(pid=process.pid, user=user), PeerProcess(pid=child, user=user)
        os.killpg(process.pid, signal.SIGKILL)


def test_a_worker_is_the_units_process_or_of_its_group_with_its_user(unit_process):
    main, child = unit_process
    assert is_of_unit(main, main)
    assert is_of_unit(child, main)
    assert not is_of_unit(main, None), "nobody was handed anything yet"
    assert not is_of_unit(PeerProcess(pid=os.getpid(), user=main.user), main)
    assert not is_of_unit(PeerProcess(pid=main.pid, user=main.user + 1), main), "a number anew"
    assert not is_of_unit(PeerProcess(pid=0, user=main.user), main)
    assert not is_of_unit(PeerProcess(pid=2**22 + 1, user=main.user), main)


def test_the_daemon_knows_a_units_process_once_it_was_handed_its_launch(tmp_path):
    assert main_process(WORKER, tmp_path) is None
    file = tmp_path / f"{WORKER}.process"
    file.write_text("{")
    assert main_process(WORKER, tmp_path) is None
    file.write_bytes(msgspec.json.encode(PeerProcess(pid=5, user=6)))
    assert main_process(WORKER, tmp_path) == PeerProcess(pid=5, user=6)


def test_a_unit_is_told_which_machine_it_shares_with_its_daemon(tmp_path):
    launch = Launch(argv=("/s.py",), env={"ELASTICPS_MACHINE": "another"}, cwd=None)
    unit_child("job.1", WORKER, launch, tmp_path, tmp_path / "failure")
    told = msgspec.json.decode(launch_file(WORKER, tmp_path).read_bytes(), type=Launch)
    assert told.env["ELASTICPS_MACHINE"] == this_machine()


@pytest.fixture
def call(tmp_path):
    """``call(answer)``: the unit's process against a daemon that answers as it is told."""
    path = tmp_path / "unit.sock"

    def run(answer: Callable[[socket.socket], object]) -> subprocess.CompletedProcess[str]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()

            def serve() -> None:
                channel, _ = listener.accept()
                with channel:
                    answer(channel)

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                return subprocess.run(
                    [sys.executable, "-P", "-m", "elasticps.worker.unit", "launch", str(path)],
                    env={"PATH": os.environ["PATH"], "RUNTIME_DIRECTORY": str(tmp_path)},
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
            finally:
                thread.join()

    return run


def test_the_unit_becomes_the_worker_with_the_daemons_own_streams(call, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SHOWS)
    launch = Launch(argv=(str(script), "--x"), env={"JOB": "mine"}, cwd=str(tmp_path))
    failure = os.memfd_create("failure")
    with (tmp_path / "out").open("wb") as out:

        def answer(channel: socket.socket) -> None:
            content = msgspec.json.encode(launch)
            socket.send_fds(channel, [content[:1]], [out.fileno(), out.fileno(), failure])
            channel.sendall(content[1:])

        done = call(answer)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    shown = json.loads((tmp_path / "out").read_text().splitlines()[0])
    assert shown == [["--x"], str(tmp_path), "mine", str(tmp_path)]
    told = msgspec.json.decode(os.pread(failure, 10_000, 0), type=ScriptFailure)
    os.close(failure)
    assert told.reason == "ValueError: as it was meant"
    assert "script.py" in told.traceback


def test_a_unit_that_is_told_nothing_runs_nothing(call):
    done = call(lambda channel: None)
    assert done.returncode == 1
    assert done.stderr == "the daemon has refused this unit\n"


def test_the_end_is_told_in_systemds_words(tmp_path, monkeypatch):
    path = tmp_path / "unit.sock"
    for name, word in (("CODE", "killed"), ("STATUS", "KILL")):
        monkeypatch.setenv(f"EXIT_{name}", word)
    monkeypatch.setenv("SERVICE_RESULT", "oom-kill")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ended(str(path))
        channel, _ = listener.accept()
        with channel:
            told = msgspec.json.decode(channel.recv(1000), type=Ended)
    assert told == Ended(code="killed", status="KILL", result="oom-kill")


def test_an_end_that_nobody_waits_for_is_no_traceback(tmp_path: Path):
    with pytest.raises(SystemExit, match="nobody hears"):
        ended(str(tmp_path / "gone.sock"))
