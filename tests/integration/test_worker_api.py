"""A run's life: what it tells its script, how it ends, and how a script joins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import elasticps
from elasticps.errors import ElasticError, PeerUnavailable, UsageError
from elasticps.testing.rig import Rig
from elasticps.wire.address import Address
from elasticps.wire.control import ControlEnd
from elasticps.wire.listener import listen
from elasticps.worker import agent
from elasticps.worker.join import AGENT_VARIABLE, WORKER_VARIABLE
from tests.support.processes import open_fds, wait_until
from tests.support.scripts import BATCH, as_worker, backward, batches, dataset, network, sgd, train
from tests.support.wire import PATIENCE_S, eventually

# -- the life of a run --------------------------------------------------------------------------


async def test_a_run_tells_where_it_is_and_what_the_script_logs() -> None:
    def script(run: elasticps.Run) -> list[Any]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH):
            loss = backward(model, batch)
            run.log(loss=loss, batch=len(batch[0]))
            optimizer.step()
        return [run.node, run.round, run.rank, run.world, run.is_main, loss.item()]

    async with Rig() as rig:
        *place, loss = await as_worker(rig, script)
        assert place == ["here", 8, 0, 1, True]
        await eventually(lambda: "w1" in rig.finished)
        told = rig.progress["w1"]
        assert (told.round, told.rank, told.world) == (8, 0, 1)
        assert told.metrics == {"loss": loss, "batch": 4.0}
        assert not rig.finished["w1"].left
        assert rig.finished["w1"].verdict is None


async def test_one_worker_is_the_main_one_and_all_hear_of_a_change() -> None:
    def script(run: elasticps.Run, rounds: int) -> tuple[int, bool, int]:
        changes = 0

        def listener() -> None:
            nonlocal changes
            changes += 1

        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        run.on_membership_change(listener)
        main = run.is_main
        train(model, optimizer, list(batches())[:rounds])
        return run.rank, main, changes

    async with Rig(start_workers=2) as rig:
        short = asyncio.create_task(as_worker(rig, lambda run: script(run, 3), "w1"))
        long = asyncio.create_task(as_worker(rig, lambda run: script(run, 6), "w2"))
        one, other = await short, await long
    assert [one[1], other[1]].count(True) == 1
    assert (one[2], other[2]) == (0, 1)
    assert other[0] == 0


async def test_a_retired_worker_ends_its_round_and_leaves_quietly() -> None:
    ready, told = threading.Event(), threading.Event()

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        data = list(batches())
        train(model, optimizer, data[:2])
        ready.set()
        assert told.wait(PATIENCE_S)
        wait_until(lambda: run._agent.retiring)
        train(model, optimizer, data[2:])

    async with Rig(audit=True) as rig:
        running = asyncio.create_task(as_worker(rig, script))
        await asyncio.to_thread(ready.wait, PATIENCE_S)
        rig.retire("w1")
        told.set()
        left = await running
        assert (left.code, left.reason) == (0, "the test says so")
        await eventually(lambda: "w1" in rig.finished)
        assert rig.finished["w1"].left
        verdict = rig.finished["w1"].verdict
        assert verdict is not None
        assert (verdict.lost, verdict.duplicated) == (0, 0)
        assert verdict.acknowledged == 3 * (len(rig.entries) - 1)


async def test_a_script_that_fails_leaves_no_success_and_no_connection() -> None:
    def script(run: elasticps.Run) -> None:
        sgd(run)
        raise ZeroDivisionError

    async with Rig() as rig:
        with pytest.raises(ZeroDivisionError):
            await as_worker(rig, script)
        await eventually(lambda: not rig.alive)
        assert rig.finished == {}
        assert threads() == []


EARLIER: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _earlier_threads() -> None:
    """A test before may have left one: of a strategy that hangs, to show that its case ends."""
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def threads() -> list[str]:
    """The data loops' threads that this test has begun and that still run."""
    begun = set(threading.enumerate()) - EARLIER
    return [item.name for item in begun if item.name == "elasticps-data"]


async def test_closing_twice_is_closing_once_and_nothing_works_afterwards() -> None:
    def script(rig: Rig) -> None:
        run = elasticps.join(rig.environment("w1"))
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        train(model, optimizer, list(batches())[:2])
        run.close()
        run.close()
        later: list[Callable[[], Any]] = [
            optimizer.step,
            optimizer.state_dict,
            lambda: list(run.data(dataset(), batch_size=4)),
        ]
        for act in later:
            with pytest.raises(UsageError, match="is closed"):
                act()

    async with Rig() as rig:
        await asyncio.to_thread(script, rig)
        await eventually(lambda: "w1" in rig.finished)
        assert threads() == []


async def test_a_run_whose_servers_are_gone_at_the_end_still_closes() -> None:
    def script(run: elasticps.Run) -> None:
        sgd(run)
        trained.set()
        assert gone.wait(PATIENCE_S)

    trained, gone = threading.Event(), threading.Event()
    async with Rig(servers=1) as rig:
        running = asyncio.create_task(as_worker(rig, script))
        await asyncio.to_thread(trained.wait, PATIENCE_S)
        for conn in list(rig.control.connections):
            await conn.aclose()
        await rig.kill_server(next(iter(rig.servers)))
        gone.set()
        with pytest.raises(PeerUnavailable, match="daemon is gone"):
            await running
        assert threads() == []


# -- join ---------------------------------------------------------------------------------------


def refused_join(environment: dict[str, str]) -> ElasticError:
    before = open_fds()
    with pytest.raises(ElasticError) as caught:
        elasticps.join(environment)
    assert threads() == []
    assert open_fds() <= before
    return caught.value


@pytest.mark.parametrize(
    "environment",
    [{}, {AGENT_VARIABLE: "unix:/nowhere"}, {WORKER_VARIABLE: "w1"}],
    ids=["nothing", "no worker", "no agent"],
)
def test_join_outside_of_a_job_says_how_to_start_one(environment: dict[str, str]) -> None:
    error = refused_join(environment)
    assert isinstance(error, UsageError)
    assert error.field == AGENT_VARIABLE
    assert "elasticps run" in str(error.hint)


def test_join_with_an_address_that_is_none_names_the_scheme() -> None:
    error = refused_join({AGENT_VARIABLE: "http://here", WORKER_VARIABLE: "w1"})
    assert isinstance(error, UsageError)
    assert error.field == "scheme"


def test_join_where_nobody_listens_says_so() -> None:
    error = refused_join({AGENT_VARIABLE: "unix:/nowhere/at.sock", WORKER_VARIABLE: "w1"})
    assert isinstance(error, PeerUnavailable)


@pytest.mark.parametrize("manner", ["hangs up", "is silent"])
async def test_join_at_a_daemon_that_does_not_know_the_worker_is_an_error(
    manner: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "CONNECT_TIMEOUT_S", 0.2)

    def on_message(conn: Any, message: Any) -> None:
        if manner == "hangs up":
            conn.abort()

    end = ControlEnd(on_message, lambda conn: None)
    async with listen(Address.unix(tmp_path / "c.sock"), lambda _: end) as control:
        environment = {AGENT_VARIABLE: str(control.address), WORKER_VARIABLE: "w1"}

        def join() -> ElasticError:
            with pytest.raises(ElasticError) as caught:
                elasticps.join(environment)
            return caught.value

        error = await asyncio.to_thread(join)
        assert isinstance(error, PeerUnavailable)
        await eventually(lambda: not control.connections)
        assert threads() == []
