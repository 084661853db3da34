"""Real child processes under the supervisor, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop

from elasticps.core.restart import RestartPolicy, RestartWhen
from elasticps.daemon import process
from elasticps.daemon.child import Child, ChildSpec
from elasticps.daemon.log_files import LinesMissed, LogBuffer, LogFile
from elasticps.daemon.supervisor import ChildState, Supervisor
from elasticps.errors import UsageError
from tests.support.loops import on_both_loops
from tests.support.processes import open_fds, runs, until, wait_until, zombie_children

NEVER = RestartPolicy(when=RestartWhen.NEVER)
ENV = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(scope="module")
def first_uvloop():
    """The first loop opens a pipe for the rest of the process's life."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_leaks(first_uvloop):
    """No process, descriptor or thread outlives a test."""
    fds, threads = open_fds(), threading.active_count()
    yield
    wait_until(lambda: threading.active_count() <= threads)
    wait_until(lambda: open_fds() <= fds)
    assert zombie_children() == []


def sh(script: str, name: str = "child", restart: RestartPolicy = NEVER, **more) -> ChildSpec:
    argv = ("/bin/sh", "-c", textwrap.dedent(script))
    return ChildSpec(name=name, argv=argv, env=ENV, restart=restart, **more)


def py(script: str, name: str = "child", restart: RestartPolicy = NEVER, **more) -> ChildSpec:
    argv = (sys.executable, "-I", "-S", "-u", "-c", textwrap.dedent(script))
    return ChildSpec(name=name, argv=argv, env=ENV, restart=restart, **more)


def child_of(spec: ChildSpec, directory) -> Child:
    return Child(spec, log_file=LogFile(directory / "child.log"), log_buffer=LogBuffer())


def printed(child: Child, stream: str = "stdout") -> list[str]:
    return [
        line.text
        for line in child.log_buffer.since()
        if not isinstance(line, LinesMissed) and line.stream == stream
    ]


async def life(spec: ChildSpec, directory) -> Child:
    """One whole life of a child."""
    child = child_of(spec, directory)
    child.start()
    await child.wait()
    return child


# Exit reasons


@pytest.mark.parametrize(
    ("script", "code", "signal_name", "reason"),
    [
        ("exit 0", 0, None, "exited with code 0"),
        ("exit 3", 3, None, "exited with code 3"),
        ("kill -KILL $$", None, "SIGKILL", "killed by SIGKILL (out of memory?)"),
        ("ulimit -c 0; kill -SEGV $$", None, "SIGSEGV", "killed by SIGSEGV (it crashed)"),
        ("kill -TERM $$", None, "SIGTERM", "killed by SIGTERM"),
    ],
)
@on_both_loops
async def test_exit_is_told_in_words(tmp_path, script, code, signal_name, reason):
    before = time.time()
    child = await life(sh(script), tmp_path)
    (ending,) = child.history
    assert (ending.code, ending.signal, ending.reason) == (code, signal_name, reason)
    assert not ending.requested
    assert before <= ending.started_unix <= ending.ended_unix <= time.time()
    assert printed(child, "daemon") == [reason]
    assert child.pid is None
    assert await child.wait() is ending


@on_both_loops
async def test_command_that_does_not_exist_says_so(tmp_path):
    spec = ChildSpec(name="child", argv=("no-such-command",), env=ENV, restart=NEVER)
    child = await life(spec, tmp_path)
    assert child.history[0].reason == "exited with code 127 (command not found?)"
    assert printed(child, "stderr") == ["cannot run 'no-such-command': No such file or directory"]


@on_both_loops
async def test_command_that_is_no_program_says_so(tmp_path):
    script = tmp_path / "script"
    script.write_text("exit 0")
    spec = ChildSpec(name="child", argv=(str(script),), env=ENV, restart=NEVER)
    child = await life(spec, tmp_path)
    assert child.history[0].reason == "exited with code 126 (the command can't be run?)"


@on_both_loops
async def test_spawn_that_fails_is_an_exit(tmp_path):
    child = await life(sh("exit 0", cwd=str(tmp_path / "gone")), tmp_path)
    (ending,) = child.history
    assert (ending.code, ending.signal) == (None, None)
    assert ending.reason == f"could not be started: No such file or directory: {tmp_path}/gone"


@on_both_loops
async def test_last_ten_exits_are_kept(tmp_path):
    script = f"n=$(cat {tmp_path}/n); echo $((n + 1)) > {tmp_path}/n; exit $n"
    (tmp_path / "n").write_text("0")
    child = child_of(sh(script), tmp_path)
    for _ in range(12):
        child.start()
        await child.wait()
    assert [ending.code for ending in child.history] == list(range(2, 12))


# What the child sees


@on_both_loops
async def test_child_gets_exactly_its_environment_argv_and_folder(tmp_path):
    script = """
        import os, sys
        print(sys.argv[1:]); print(os.getcwd()); print(sys.stdin.read() == "")
        print(open("/proc/self/environ").read().split("\\0")[:-1])
        print(sorted(os.listdir("/proc/self/fd"))[:3], os.getpid() == os.getsid(0))
    """
    argv = (sys.executable, "-I", "-S", "-c", textwrap.dedent(script), "a b", "$HOME", "ü", "")
    spec = ChildSpec(name="c", argv=argv, env={"A": "1=2"}, cwd=str(tmp_path), restart=NEVER)
    child = await life(spec, tmp_path)
    assert printed(child) == [
        "['a b', '$HOME', 'ü', '']",
        str(tmp_path),
        "True",
        "['A=1=2']",
        "['0', '1', '2'] True",
    ]


@on_both_loops
async def test_child_starts_with_default_signals(tmp_path):
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, 15)}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        child = await life(sh("grep -E 'Sig(Blk|Ign)' /proc/self/status"), tmp_path)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        for number, action in before.items():
            signal.signal(number, action)
    blocked, ignored = (int(line.split()[1], 16) for line in printed(child))
    # Signals 32 and 33 are the C library's own: no program can set them back.
    assert (blocked, ignored & ~0x1_8000_0000) == (0, 0)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "../../etc/passwd"}, "name"),
        ({"name": "a\r\nb"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"argv": ()}, "argv"),
        ({"argv": ("",)}, "argv"),
        ({"argv": ("a", "b\0c")}, "argv"),
        ({"env": {"A=B": "1"}}, "env"),
        ({"env": {"A": "1\0"}}, "env"),
        ({"env": {"": "1"}}, "env"),
        ({"cwd": "/\0"}, "cwd"),
        ({"stop_grace_s": -1.0}, "stop_grace_s"),
        ({"stop_grace_s": float("nan")}, "stop_grace_s"),
    ],
)
def test_impossible_spec_is_refused_by_field(wrong, field):
    values = {"name": "a", "argv": ("true",), "env": {}, "restart": NEVER} | wrong
    with pytest.raises(UsageError) as caught:
        ChildSpec(**values)
    assert caught.value.field == field


# Output


@on_both_loops
async def test_output_reaches_buffer_and_file_in_order(tmp_path):
    child = await life(sh("for i in 1 2 3; do echo o$i; echo e$i >&2; done; printf end"), tmp_path)
    assert printed(child) == ["o1", "o2", "o3", "end"]
    assert printed(child, "stderr") == ["e1", "e2", "e3"]
    lines = child.log_buffer.since()
    assert [line.sequence for line in lines] == list(range(1, 9))
    assert {line.source for line in lines} == {"child"}
    in_file = [line.split(" ", 1)[1] for line in child.log_file.path.read_text().splitlines()]
    assert sorted(in_file) == sorted(f"{line.stream} {line.text}" for line in lines)
    assert in_file[-1] == "daemon exited with code 0"


@on_both_loops
async def test_megabyte_without_newline_is_split_and_nothing_is_lost(tmp_path):
    child = await life(py("print('x' * (1 << 20), end='')"), tmp_path)
    assert printed(child) == ["x" * 65536] * 16
    assert child.history[0].code == 0


@on_both_loops
async def test_much_output_rotates_and_the_child_is_not_held_up(tmp_path):
    file = LogFile(tmp_path / "child.log", max_bytes=64 << 10, keep=2)
    buffer = LogBuffer(max_lines=100)
    child = Child(py("for i in range(20_000): print(i)"), log_file=file, log_buffer=buffer)
    child.start()
    assert (await child.wait()).code == 0
    assert buffer.last == 20_001
    assert printed(child)[-1] == "19999"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["child.log", "child.log.1", "child.log.2"]
    rows = [
        line.split()
        for name in reversed(names)
        for line in (tmp_path / name).read_text().splitlines()
    ]
    numbers = [int(row[2]) for row in rows if row[1] == "stdout"]
    assert numbers == list(range(numbers[0], 20_000))
    assert all((tmp_path / name).stat().st_size <= 64 << 10 for name in names)


@on_both_loops
async def test_follower_sees_output_while_the_child_lives(tmp_path):
    child = child_of(sh("echo ready; exec sleep 1000"), tmp_path)
    child.start()
    async for line in child.log_buffer.follow():
        assert line.text == "ready"
        assert child.pid is not None
        break
    await child.stop()


@on_both_loops
async def test_full_log_folder_does_not_stop_the_child(tmp_path):
    file = LogFile(tmp_path / "gone" / "child.log")
    child = Child(sh("echo a; echo b; exit 4"), log_file=file, log_buffer=LogBuffer())
    child.start()
    assert (await child.wait()).code == 4
    assert printed(child) == ["a", "b"]
    assert file.dropped == 3


# Stop and abort


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


# Grandchildren


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


# The end of the daemon

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


# The supervisor

FAST = RestartPolicy(first_delay_s=0.01, max_delay_s=0.02, max_restarts=4)


def status_of(pid: int | None) -> bytes:
    return Path(f"/proc/{pid}/status").read_bytes()


def comm_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def state(supervisor: Supervisor) -> ChildState:
    return supervisor.snapshot()[0].state


@on_both_loops
async def test_killed_child_is_restarted(tmp_path):
    exits = []
    async with Supervisor(tmp_path) as supervisor:
        child = supervisor.add(sh("exec sleep 1000", restart=RestartPolicy()), exits.append)
        assert state(supervisor) is ChildState.STARTING
        await until(lambda: child.pid)
        first = child.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in (None, first))
        (status,) = supervisor.snapshot()
        assert (status.name, status.pid, status.restarts) == ("child", child.pid, 1)
        assert status.state is ChildState.RUNNING
        assert status.last_exit == exits[0]
        assert status.last_exit.signal == "SIGKILL"
        second = child.pid
    assert not runs(first)
    assert not runs(second)
    assert len(exits) == 1


@on_both_loops
async def test_delays_between_restarts_grow(tmp_path):
    policy = RestartPolicy(first_delay_s=0.05, max_restarts=4)
    async with Supervisor(tmp_path) as supervisor:
        child = supervisor.add(sh("exit 1", restart=policy))
        await until(lambda: state(supervisor) is ChildState.BACKING_OFF)
        assert child.pid is None
        await until(lambda: state(supervisor) is ChildState.GAVE_UP)
        lives = child.history
    gaps = [after.started_unix - before.ended_unix for before, after in pairwise(lives)]
    assert all(gap >= 0.9 * least for gap, least in zip(gaps, (0.05, 0.1, 0.2, 0.4), strict=True))


@on_both_loops
async def test_child_that_fails_too_often_is_given_up_with_the_reason(tmp_path):
    seen = []
    async with Supervisor(tmp_path) as supervisor:
        supervisor.add(
            sh("exit 9", restart=FAST), lambda _: seen.append(supervisor.snapshot()[0].state)
        )
        await until(lambda: state(supervisor) is ChildState.GAVE_UP)
        (status,) = supervisor.snapshot()
        assert status.gave_up == (
            "gave up after 4 restarts within 120 s; the last: exited with code 9"
        )
        assert status.restarts == 4
        assert status.pid is None
        assert seen == [ChildState.BACKING_OFF] * 4 + [ChildState.GAVE_UP]


@on_both_loops
async def test_spawn_that_always_fails_is_given_up(tmp_path):
    async with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.add(sh("exit 0", restart=FAST, cwd=str(tmp_path / "gone")))
        await until(lambda: state(supervisor) is ChildState.GAVE_UP)
        assert "could not be started" in supervisor.snapshot()[0].gave_up


@on_both_loops
async def test_exit_code_is_final_where_only_signals_restart(tmp_path):
    policy = RestartPolicy(when=RestartWhen.ON_SIGNAL)
    async with Supervisor(tmp_path) as supervisor:
        supervisor.add(sh("exit 1", restart=policy))
        await until(lambda: state(supervisor) is ChildState.STOPPED)
        (status,) = supervisor.snapshot()
        assert (status.restarts, status.last_exit.code, status.gave_up) == (0, 1, None)


@on_both_loops
async def test_child_stopped_by_its_holder_stays_down(tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        child = supervisor.add(sh("exec sleep 1000", restart=RestartPolicy()))
        await until(lambda: child.pid)
        await child.stop()
        await until(lambda: state(supervisor) is ChildState.STOPPED)
        assert child.pid is None


@on_both_loops
async def test_removed_child_is_gone_and_its_name_is_free(tmp_path):
    exits = []
    async with Supervisor(tmp_path) as supervisor:
        child = supervisor.add(
            sh("echo one; exec sleep 1000", restart=RestartPolicy()), exits.append
        )
        with pytest.raises(UsageError) as caught:
            supervisor.add(sh("exit 0"))
        assert caught.value.field == "name"
        await until(lambda: printed(child))
        pid = child.pid
        await asyncio.gather(supervisor.remove("child"), supervisor.remove("child"))
        assert not runs(pid)
        assert supervisor.snapshot() == []
        assert (await anext(child.log_buffer.follow())).text == "one"
        with pytest.raises(UsageError):
            await supervisor.remove("child")
        supervisor.add(sh("echo two; exec sleep 1000"))
        await until(lambda: "two" in (tmp_path / "child.log").read_text())
    assert exits == []
    words = [line.split()[-1] for line in (tmp_path / "child.log").read_text().splitlines()]
    assert words == ["one", "SIGTERM", "two", "SIGTERM"]


@on_both_loops
async def test_child_can_be_removed_while_it_backs_off(tmp_path):
    policy = RestartPolicy(first_delay_s=1000, max_delay_s=1000)
    async with Supervisor(tmp_path) as supervisor:
        supervisor.add(sh("exit 1", restart=policy))
        await until(lambda: state(supervisor) is ChildState.BACKING_OFF)
        await supervisor.remove("child")
        assert supervisor.snapshot() == []


@on_both_loops
async def test_leaving_the_block_stops_all_children_at_the_same_time(tmp_path):
    stubborn = "trap '' TERM; echo up; while :; do sleep 0.01; done"
    async with Supervisor(tmp_path) as supervisor:
        children = [
            supervisor.add(
                sh(stubborn, name=f"c{number}", restart=RestartPolicy(), stop_grace_s=0.5)
            )
            for number in range(4)
        ]
        await until(lambda: all(printed(child) for child in children))
        pids = [child.pid for child in children]
    assert not any(map(runs, pids))
    ends = [child.history[-1].ended_unix for child in children]
    assert max(ends) - min(ends) < 2 * 0.5  # one after the other would take three graces
    with pytest.raises(RuntimeError):
        supervisor.add(sh("exit 0"))


@on_both_loops
async def test_error_in_the_block_stops_the_children_too(tmp_path):
    pids = []

    async def serve():
        async with Supervisor(tmp_path) as supervisor:
            child = supervisor.add(sh("exec sleep 1000", restart=RestartPolicy()))
            await until(lambda: child.pid)
            pids.append(child.pid)
            raise ValueError("the daemon's own")

    with pytest.raises(ExceptionGroup) as caught:
        await serve()
    assert caught.group_contains(ValueError)
    assert not runs(pids[0])


@on_both_loops
async def test_error_in_on_exit_ends_the_supervisor_loudly(tmp_path):
    def on_exit(_):
        raise ValueError("the owner's own")

    pids = []

    async def serve():
        async with Supervisor(tmp_path) as supervisor:
            other = supervisor.add(sh("exec sleep 1000", name="other"))
            await until(lambda: other.pid)
            pids.append(other.pid)
            supervisor.add(sh("exit 0"), on_exit)
            await asyncio.sleep(1000)

    with pytest.raises(ExceptionGroup) as caught:
        await serve()
    assert caught.group_contains(ValueError)
    assert not runs(pids[0])


@on_both_loops
async def test_cancelled_supervisor_ends_its_children(tmp_path):
    pids = []

    async def serve():
        async with Supervisor(tmp_path) as supervisor:
            child = supervisor.add(sh("exec sleep 1000", restart=RestartPolicy()))
            await until(lambda: child.pid)
            pids.append(child.pid)
            await asyncio.sleep(1000)

    task = asyncio.create_task(serve())
    await until(lambda: pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not runs(pids[0])
    assert asyncio.all_tasks() == {asyncio.current_task()}


@on_both_loops
async def test_cancelling_the_end_kills_at_once(tmp_path):
    children = []

    async def serve():
        async with Supervisor(tmp_path) as supervisor:
            spec = sh("trap '' TERM; echo up; while :; do sleep 0.01; done", stop_grace_s=1000)
            children.append(supervisor.add(spec))
            await until(lambda: printed(children[0]))
            await asyncio.sleep(1000)

    task = asyncio.create_task(serve())
    await until(lambda: children and printed(children[0]))
    pid = children[0].pid
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not runs(pid)
    assert children[0].history[0].signal == "SIGKILL"
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_daemon_package_does_not_import_torch():
    names = "child supervisor process output log_files notify reap"
    script = f"""
import sys
for name in {names.split()}:
    __import__("elasticps.daemon." + name)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
