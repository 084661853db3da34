"""A child that is stopped, or whose daemon dies: nothing is left of its group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from elasticps.daemon import process
from tests.integration.supervisor.children import child_of, life, printed, py, sh
from tests.support.loops import on_both_loops
from tests.support.processes import runs, until, wait_until


def comm_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def status_of(pid: int | None) -> bytes:
    return Path(f"/proc/{pid}/status").read_bytes()


@on_both_loops
async def test_stop_lets_the_process_end_in_its_own_way(tmp_path):
    child = child_of(
        sh("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.01; done"), tmp_path
    )
    child.start()
    await until(lambda: printed(child) == ["up"])
    await child.stop()
    assert printed(child) == ["up", "bye"]
    (ending,) = child.history
    assert (ending.code, ending.requested) == (5, True)
    assert ending.reason == "stopped on request: exited with code 5"
    await child.stop()
    child.abort()
    assert child.history == (ending,)


@on_both_loops
async def test_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    spec = sh("trap '' TERM; echo up; while :; do sleep 0.01; done", stop_grace_s=0.2)
    child = child_of(spec, tmp_path)
    child.start()
    await until(lambda: printed(child))
    await asyncio.gather(child.stop(), child.stop())
    (ending,) = child.history
    assert ending.signal == "SIGKILL"
    assert ending.reason == ("stopped on request: killed by SIGKILL (it ignored SIGTERM for 0.2 s)")


@on_both_loops
async def test_frozen_process_is_killed_after_the_grace(tmp_path):
    child = child_of(sh("kill -STOP $$", stop_grace_s=0.2), tmp_path)
    child.start()
    await until(lambda: b"T (stopped)" in status_of(child.pid))
    await child.stop()
    assert child.history[0].signal == "SIGKILL"


@on_both_loops
async def test_stop_right_after_start_ends_the_process(tmp_path):
    child = child_of(sh("exec sleep 1000"), tmp_path)
    child.start()
    pid = child.pid
    await child.stop()
    assert not runs(pid)
    assert child.history[0].requested


@on_both_loops
async def test_abort_kills_the_whole_group_at_once(tmp_path):
    child = child_of(sh("sleep 1000 & echo $!; wait", stop_grace_s=1000), tmp_path)
    child.start()
    await until(lambda: printed(child))
    pids = [child.pid, int(printed(child)[0])]
    child.abort()
    assert (await child.wait()).reason == "stopped on request: killed by SIGKILL (abort)"
    await until(lambda: not any(map(runs, pids)))


@on_both_loops
async def test_cancelled_stop_kills_at_once(tmp_path):
    child = child_of(
        sh("trap '' TERM; echo up; while :; do sleep 0.01; done", stop_grace_s=1000), tmp_path
    )
    child.start()
    await until(lambda: printed(child))
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert (await child.wait()).signal == "SIGKILL"


@on_both_loops
async def test_one_life_at_a_time(tmp_path):
    child = child_of(sh("exec sleep 1000"), tmp_path)
    with pytest.raises(RuntimeError, match="never started"):
        await child.wait()
    await child.stop()
    child.start()
    with pytest.raises(RuntimeError, match="is running"):
        child.start()
    await child.stop()


@on_both_loops
async def test_grandchildren_die_with_a_stopped_child(tmp_path):
    script = "trap '' TERM; sleep 1000 & echo $!; (sleep 1000 & echo $!; wait) & wait"
    child = child_of(sh(script, stop_grace_s=0.1), tmp_path)
    child.start()
    await until(lambda: len(printed(child)) == 2)
    await child.stop()
    await until(lambda: not any(runs(int(pid)) for pid in printed(child)))


@on_both_loops
async def test_grandchildren_die_with_a_child_that_exits(tmp_path):
    child = await life(sh("sleep 1000 & echo $!; exit 7"), tmp_path)
    assert child.history[0].code == 7
    await until(lambda: not runs(int(printed(child)[0])))


@on_both_loops
async def test_process_that_left_the_group_does_not_hold_up_the_exit(tmp_path):
    note = tmp_path / "pid"
    script = f"""
        setsid sh -c 'echo $$ > {note}; exec sleep 1000' &
        while [ ! -s {note} ]; do sleep 0.01; done
        exit 7
    """
    child = await life(sh(script), tmp_path)
    assert child.history[0].code == 7
    escaped = int(note.read_text())
    assert runs(escaped)
    os.kill(escaped, signal.SIGKILL)


DAEMON = """
import asyncio, sys
from pathlib import Path
import uvloop
from elasticps.core.restart import RestartPolicy
from elasticps.daemon.child import ChildSpec
from elasticps.daemon.supervisor import Supervisor

async def main():
    async with Supervisor(Path(sys.argv[1])) as supervisor:
        for name in "abc":
            argv = tuple(sys.argv[3:]) or ("sleep", "1000")
            spec = ChildSpec(name=name, argv=argv, env={}, restart=RestartPolicy())
            supervisor.add(spec)
        while any(status.pid is None for status in supervisor.snapshot()):
            await asyncio.sleep(0.01)
        print(*(status.pid for status in supervisor.snapshot()), flush=True)
        await asyncio.sleep(1000)

with asyncio.Runner(loop_factory=getattr(sys.modules[sys.argv[2]], "new_event_loop")) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_children_die_with_the_daemon_however_it_dies(tmp_path, loop, number):
    command = [sys.executable, "-c", DAEMON, str(tmp_path), loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        wait_until(lambda: all(comm_of(pid) == b"sleep\n" for pid in pids))
        assert len(pids) == 3
        daemon.send_signal(number)
        daemon.wait()
        try:
            wait_until(lambda: not any(map(runs, pids)))
        finally:
            for pid in filter(runs, pids):
                os.kill(pid, signal.SIGKILL)


FORKING = """
import os, time
if os.fork() == 0:
    os.fork()
time.sleep(1000)
"""


def group_of(leader: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(entry.name)) == leader and runs(int(entry.name)):
                    found.append(int(entry.name))
    return found


def test_grandchildren_die_when_the_daemon_is_killed(tmp_path):
    argv = [sys.executable, "-I", "-S", "-c", FORKING]
    command = [sys.executable, "-c", DAEMON, str(tmp_path), "uvloop", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        # The command, its child, its grandchild, and the guard.
        wait_until(lambda: all(len(group_of(pid)) == 4 for pid in pids))
        daemon.kill()
        daemon.wait()
        try:
            wait_until(lambda: not any(map(group_of, pids)))
        finally:
            for pid in filter(group_of, pids):
                os.killpg(pid, signal.SIGKILL)


@on_both_loops
async def test_child_has_no_child_that_it_did_not_fork(tmp_path):
    script = """
        import os
        try:
            os.wait()
        except ChildProcessError:
            print("none")
    """
    child = await life(py(script), tmp_path)
    assert printed(child) == ["none"]


@on_both_loops
async def test_sigterm_to_the_whole_group_ends_a_child_and_its_guard(tmp_path):
    child = child_of(sh("echo up; exec sleep 1000"), tmp_path)
    child.start()
    pid = child.pid
    await until(lambda: printed(child))
    os.killpg(pid, signal.SIGTERM)
    assert (await child.wait()).signal == "SIGTERM"
    await until(lambda: not group_of(pid))


def test_command_is_not_run_when_the_daemon_has_died_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", process.REAP, "1", "--", "touch", str(tmp_path / "ran")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "the parent process has ended\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("turns", [0, 1, 50])
def test_loop_that_is_torn_down_leaves_no_process(tmp_path, factory, turns):
    pids = []

    async def main():
        child = child_of(sh("exec sleep 1000"), tmp_path)
        child.start()
        pids.append(child.pid)
        for _ in range(turns):
            await asyncio.sleep(0.001)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert not runs(pids[0])


@on_both_loops
async def test_task_cancelled_before_its_first_step_leaves_no_process(tmp_path):
    child = child_of(sh("exec sleep 1000"), tmp_path)
    child.start()
    pid = child.pid
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await until(lambda: child.pid is None)
    assert not runs(pid)


async def test_a_process_that_takes_long_to_die_is_reaped_when_it_does(monkeypatch):
    monkeypatch.setattr(process, "KILL_WAIT_S", 0.0)
    group = process.ProcessGroup.spawn(("sleep", "1000"), os.environ, None)
    group.close()
    await until(lambda: group._process.returncode == -signal.SIGKILL)
