"""One child process, on asyncio's loop and on uvloop: its start, its exit, its output."""

from __future__ import annotations

import signal
import sys
import textwrap
import time

import pytest

from elasticps.daemon.child import Child, ChildSpec
from elasticps.daemon.log_files import LogBuffer, LogFile
from elasticps.errors import UsageError
from tests.integration.supervisor.children import ENV, NEVER, child_of, life, printed, py, sh
from tests.support.loops import on_both_loops


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
