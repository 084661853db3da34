"""What the contract of a strategy promises to whoever writes one."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import elasticps
from elasticps.api.plugins import STRATEGIES
from elasticps.errors import JobFailed, PluginError, UsageError
from elasticps.testing.rig import Rig
from tests.support.distributions import Install, install
from tests.support.quadratic import Quadratic, Vector
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    dataset,
    network,
)
from tests.support.wire import PATIENCE_S

__all__ = ["install"]


def installed(install: Install, body: str) -> str:
    """The name of a strategy with these methods."""
    lines = ["from elasticps import Strategy", "class Mine(Strategy):"]
    lines += [f"    {line}" for line in body.strip("\n").splitlines()]
    install("acme", "acme", "\n".join(lines), {STRATEGIES: {"mine": "acme:Mine"}})
    return "mine"


FAILING = {
    "begin()": "def begin(self, worker): 1 / 0\ndef step(self, worker): pass",
    "step()": "def step(self, worker): 1 / 0",
    "end()": "def step(self, worker): worker.exchange()\ndef end(self, worker): 1 / 0",
    "steps_per_round is 0": "steps_per_round = 0\ndef step(self, worker): pass",
}


@pytest.mark.parametrize("what", FAILING)
async def test_a_strategy_that_fails_is_named(what: str, install: Install) -> None:
    async with Rig(strategy=installed(install, FAILING[what])) as rig:
        with pytest.raises(PluginError) as caught:
            await as_worker(rig, Quadratic(steps=2, lr=0.1).trained)
        assert rig.finished == {}
    assert str(caught.value).startswith(f"strategy mine: {what}")


async def test_a_strategy_that_ends_no_round_is_told_so(install: Install) -> None:
    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        for batch in run.data(dataset(), batch_size=BATCH):
            backward(model, batch)
            optimizer.step()

    async with Rig(strategy=installed(install, "def step(self, worker): pass")) as rig:
        with pytest.raises(UsageError, match="ended no round"):
            await as_worker(rig, script)


MISUSES = {
    "an unknown name": ("worker.exchange({'x': worker.parameters['first']})", "updates"),
    "another shape": ("worker.exchange({'first': worker.parameters['second']})", "first"),
    "two rounds at once": (
        "worker.start_exchange({}); worker.start_exchange({})",
        "strategy",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
async def test_a_misuse_names_the_field(name: str, install: Install) -> None:
    line, field = MISUSES[name]
    async with Rig(strategy=installed(install, f"def step(self, worker): {line}")) as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, Quadratic(steps=1, lr=0.1).trained)
    assert caught.value.field == field


async def test_a_round_of_no_updates_commits_and_moves_no_tensors(install: Install) -> None:
    def script(run: elasticps.Run) -> Any:
        found = Quadratic(steps=4, lr=0.1).trained(run)
        return found, run.round, run._membership.exchange.encoder.pushed_bytes

    body = "def step(self, worker): worker.start_exchange({}).wait()"
    async with Rig(start_workers=2, strategy=installed(install, body), audit=True) as rig:
        results = await as_workers(rig, 2, script)
        verdicts = await rig.verdicts(2)
    for found, rounds, pushed in results:
        assert (found.tolist(), rounds, pushed) == ([0.0] * 5, 4, 0)
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)


async def test_a_worker_hears_who_is_left_when_a_peer_is_lost(install: Install) -> None:
    """As a strategy does whose workers talk to each other, beside the shards."""
    body = """
def step(self, worker):
    if worker.world == 2:
        before = worker.generation
        worker.await_change()
        assert worker.generation > before
    worker.exchange()
"""
    alone = threading.Event()

    def survivor(run: elasticps.Run) -> tuple[int, int, int]:
        model = Vector()
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        alone.set()
        model.whole.sum().backward()
        optimizer.step()
        return run.rank, run.world, run.round

    def dying(run: elasticps.Run) -> None:
        run.optimizer(Vector(), "sgd", lr=0.1)
        assert alone.wait(PATIENCE_S)
        raise JobFailed("as a process that dies")

    async with Rig(start_workers=2, strategy=installed(install, body)) as rig:
        one = asyncio.create_task(as_worker(rig, survivor, "w1"))
        with pytest.raises(JobFailed):
            await as_worker(rig, dying, "w2")
        assert await one == (0, 1, 1)


async def test_members_are_the_same_throughout_a_step(install: Install) -> None:
    """Whatever the data loop hears: they change in the strategy's own calls alone."""
    body = """
seen = []
def begin(self, worker):
    self.seen.append(("begin", worker.world))
def membership_changed(self, worker):
    self.seen.append(("changed", worker.world))
def step(self, worker):
    worker.exchange()
def end(self, worker):
    self.seen.append(("end", worker.world))
"""
    joined, go_on = threading.Event(), threading.Event()

    def script(run: elasticps.Run, uid: str) -> Any:
        model = Vector()
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        if uid == "w2":
            joined.set()
        else:
            go_on.set()
        while not (run.world == 2 and run.round >= 3):
            optimizer.zero_grad()
            model.whole.sum().backward()
            optimizer.step()
        return torch.clone(model.first.detach())

    name = installed(install, body)
    async with Rig(strategy=name) as rig:
        first = asyncio.create_task(as_worker(rig, lambda run: script(run, "w1"), "w1"))
        await asyncio.to_thread(go_on.wait, PATIENCE_S)
        second = asyncio.create_task(as_worker(rig, lambda run: script(run, "w2"), "w2"))
        await asyncio.to_thread(joined.wait, PATIENCE_S)
        one, other = await asyncio.gather(first, second)
    assert torch.equal(one, other)
    import acme  # type: ignore[import-not-found]

    assert ("begin", 1) in acme.Mine.seen
    assert ("changed", 2) in acme.Mine.seen


async def test_the_plugin_that_the_docs_show_trains(install: Install) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "strategies.md").read_text()
    (source,) = re.findall(r"```python\n# elasticps_drift/__init__.py\n(.*?)```", text, re.DOTALL)
    install(
        "elasticps-drift",
        "elasticps_drift",
        source,
        {STRATEGIES: {"drift": "elasticps_drift:Drift"}},
    )
    read: Counter[int] = Counter()
    lock = threading.Lock()

    def script(run: elasticps.Run) -> tuple[nn.Module, int]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.02)
        numbered = TensorDataset(*dataset().tensors, torch.arange(60))
        for inputs, targets, numbers in run.data(numbered, batch_size=BATCH, epochs=4):
            optimizer.zero_grad()
            backward(model, (inputs, targets))
            with lock:
                read.update(numbers.tolist())
            optimizer.step()
        return model, run.round

    async with Rig(start_workers=2, strategy="drift:far=0.05,most=8", audit=True) as rig:
        (one, rounds), (other, _) = await as_workers(rig, 2, script)
    assert_equal(one, other)
    assert read == Counter(dict.fromkeys(range(60), 4))
    assert 5 <= rounds <= 32
