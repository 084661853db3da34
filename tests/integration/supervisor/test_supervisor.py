"""Children under the supervisor: restarted, given up, removed, and ended with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from itertools import pairwise

import pytest

from elasticps.core.restart import RestartPolicy, RestartWhen
from elasticps.daemon.supervisor import ChildState, Supervisor
from elasticps.errors import UsageError
from tests.integration.supervisor.children import printed, sh
from tests.support.loops import on_both_loops
from tests.support.processes import runs, until

FAST = RestartPolicy(first_delay_s=0.01, max_delay_s=0.02, max_restarts=4)


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
