"""Several strategies in one job, by the parameters' names: over real sockets, in threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.api.plugins import STRATEGIES
from elasticps.core.consistency import Consistency
from elasticps.errors import JobFailed, PluginError, UsageError
from elasticps.server.parameter_block import ParameterBlock
from elasticps.strategies.fiber import FIBERS
from elasticps.testing.rig import Rig
from elasticps.testing.waiting import eventually
from tests.support.cases import short_are
from tests.support.distributions import Install, install
from tests.support.processes import wait_until
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
    train,
)

__all__ = ["install"]

DENSE_AND_REST = "0.*=all-reduce:publish_every=5; *=data-parallel"
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9},
    "adamw": {"lr": 0.01},
    "adafactor": {"lr": 0.01},
}
LOCAL: dict[str, Any] = {"sgd": optim.SGD, "adamw": optim.AdamW, "adafactor": optim.Adafactor}
LONG = pytest.mark.long


def trained(name: str, epochs: int) -> Any:
    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, name, **OPTIONS[name])
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=epochs))
        return model

    return script


def alone(name: str, epochs: int) -> nn.Module:
    model = network()
    train(model, LOCAL[name](model.parameters(), **OPTIONS[name]), batches(epochs=epochs))
    return model


# -- all-reduce for one part, data-parallel for another -----------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    short_are(("sgd", 1), ("adamw", 2), ("adafactor", 3), of=product(LOCAL, (1, 2, 3))),
)
async def test_all_reduce_and_data_parallel_equal_the_local_run(name: str, count: int) -> None:
    async with Rig(start_workers=count, strategy=DENSE_AND_REST, audit=True) as rig:
        models = await as_workers(rig, count, trained(name, epochs=2))
        verdicts = await rig.verdicts(count)
    for model in models:
        assert_equal(model, alone(name, epochs=2), exactly=False)
        assert_equal(model, models[0])
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)


Used = dict[int, list[int]]
"""The samples of each round."""


def numbered() -> TensorDataset:
    return TensorDataset(torch.arange(60), *dataset().tensors)


class Recorded:
    """A script that notes, for every round that it has been in, the samples that it had."""

    def __init__(self, epochs: int, **options: float) -> None:
        self.used: Used = {}
        self.worlds: list[int] = []
        self._epochs = epochs
        self._options = options or OPTIONS["sgd"]
        self._lock = threading.Lock()

    def run(self, run: elasticps.Run, before: Any = lambda _: None) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", **self._options)
        had: list[int] = []
        for numbers, *batch in run.data(numbered(), batch_size=BATCH, epochs=self._epochs):
            before(run)
            optimizer.zero_grad()
            backward(model, batch)
            round_, self.worlds = run.round, [*self.worlds, run.world]
            had += numbers.tolist()
            optimizer.step()
            if run.round > round_:
                with self._lock:
                    self.used.setdefault(round_, []).extend(had)
                had = []
        return model

    def replayed(self) -> nn.Module:
        """A single process that has the same samples in each step."""
        model = network()
        optimizer = optim.SGD(model.parameters(), **self._options)
        data = dataset()
        train(model, optimizer, (data[self.used[round_]] for round_ in sorted(self.used)))
        return model

    def counts(self) -> Counter[int]:
        return Counter(number for numbers in self.used.values() for number in numbers)


@pytest.mark.parametrize("strategy", [DENSE_AND_REST, "0.*=data-parallel; *=all-reduce"])
async def test_who_joins_has_both_parts_and_every_sample_is_read_once(strategy: str) -> None:
    """The joiner gets the momentum of the part that steps in the workers."""
    joining = threading.Event()

    def waits(run: elasticps.Run) -> None:
        if run.steps == 12 and run.rank == 0 and not joining.is_set():
            joining.set()
            wait_until(lambda: rig.ledger.joining)

    async with Rig(start_workers=2, strategy=strategy) as rig:
        recorded = Recorded(epochs=6)
        first = [
            asyncio.create_task(as_worker(rig, lambda run: recorded.run(run, waits), f"w{n}"))
            for n in range(2)
        ]
        await asyncio.to_thread(joining.wait)
        third = asyncio.create_task(as_worker(rig, recorded.run, "w2"))
        models = [await task for task in (*first, third)]
    assert recorded.counts() == Counter(dict.fromkeys(range(60), 6))
    assert set(recorded.worlds) == {2, 3}
    for model in models:
        assert_equal(model, models[0])
        assert_equal(model, recorded.replayed(), exactly=False)


def dies_at(run: elasticps.Run, call: str) -> None:
    """From now on the worker dies where it sums with others, or its exchange comes to ``call``."""

    def died(*_: Any, **__: Any) -> Any:
        raise JobFailed("as a process that dies")

    async def died_there(*_: Any, **__: Any) -> Any:
        died()

    if call == "sum":
        run._membership.peer_calls.sum = died  # type: ignore[method-assign, union-attr]
    else:
        setattr(run._membership.exchange, call, died_there)


REST_AND_DENSE, BOTH = "0.*=data-parallel; *=all-reduce", "0.*=all-reduce; *=all-reduce"


@pytest.mark.parametrize(
    ("strategy", "call"),
    short_are(
        (DENSE_AND_REST, "sum"),
        (DENSE_AND_REST, "read"),
        (REST_AND_DENSE, "push"),
        (BOTH, "vote"),
        of=product((DENSE_AND_REST, REST_AND_DENSE, BOTH), ("sum", "push", "vote", "read")),
    ),
)
async def test_a_death_in_mid_round_leaves_both_parts_whole(strategy: str, call: str) -> None:
    """Before it has summed, pushed or voted, and before it has read what it voted for."""

    def dying(run: elasticps.Run) -> None:
        recorded.run(run, lambda run: dies_at(run, call) if run.steps == 9 else None)

    async with Rig(start_workers=3, strategy=strategy) as rig:
        recorded = Recorded(epochs=4)
        ends = await asyncio.gather(
            as_worker(rig, recorded.run, "w0"),
            as_worker(rig, recorded.run, "w1"),
            as_worker(rig, dying, "w2"),
            return_exceptions=True,
        )
    models = [end for end in ends if isinstance(end, nn.Module)]
    if call == "read":  # the round counts it, and it has not noted what it had
        missing = Counter(dict.fromkeys(range(60), 4)) - recorded.counts()
        recorded.used[9] += list(missing.elements())
    assert recorded.counts() == Counter(dict.fromkeys(range(60), 4))
    assert len(models) == 2
    for model in models:
        assert_equal(model, models[0])
        assert_equal(model, recorded.replayed(), exactly=False)


# -- parts whose rounds have several steps ------------------------------------------------------


async def test_a_part_that_averages_seldom_steps_beside_one_that_is_in_step() -> None:
    """With one worker local SGD's average is what it has: the run is the local one."""
    async with Rig(strategy="0.*=local-sgd:h=4; *=data-parallel", audit=True) as rig:
        model = await as_worker(rig, trained("sgd", epochs=2))
        await eventually(lambda: len(rig.finished) == 1)
        (finished,) = rig.finished.values()
    assert finished.verdict is not None
    assert (finished.verdict.lost, finished.verdict.duplicated) == (0, 0)
    assert_equal(model, alone("sgd", epochs=2), exactly=False)


async def test_workers_average_one_part_each_fourth_round_and_the_other_in_each() -> None:
    """Held against the same in one process: two models, of which parts are made equal."""
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    used: dict[tuple[int, int], torch.Tensor] = {}

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for numbers, *batch in run.data(numbered(), batch_size=10, epochs=4):
            optimizer.zero_grad()
            backward(model, batch)
            here = run.rank, run.round
            used[here] = numbers
            optimizer.step()
            seen[here] = [item.detach().clone() for item in model.parameters()]

    async with Rig(start_workers=2, strategy="0.*=local-sgd:h=4; *=data-parallel") as rig:
        await as_workers(rig, 2, script)
    models = [network(), network()]
    for round_ in range(24):
        for rank, model in enumerate(models):
            model.zero_grad()
            backward(model, dataset()[used[rank, round_]])
        step_of_two(models, averages=(round_ + 1) % 4 == 0)
        for rank, model in enumerate(models):
            for item, wanted in zip(seen[rank, round_], model.parameters(), strict=True):
                torch.testing.assert_close(item, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def step_of_two(models: list[nn.Module], *, averages: bool) -> None:
    """SGD on both models: the first layers by themselves, the last ones by their mean gradient."""
    for index, pair in enumerate(zip(*(model.parameters() for model in models), strict=True)):
        gradients = [item.grad for item in pair if item.grad is not None]
        for item, gradient in zip(pair, gradients, strict=True):
            item.sub_(gradient if index < 2 else sum(gradients) / 2, alpha=0.01)
        if averages:
            mean = sum(item.clone() for item in pair) / 2
            for item in pair:
                item.copy_(mean)


@pytest.mark.parametrize(
    ("strategy", "job"),
    [
        ("0.*=local-sgd:h=3,outer=nesterov; *=all-reduce:publish_every=4", {}),
        ("0.*=gossip:publish_every=7; *=data-parallel", {}),
        pytest.param("0.*=local-sgd:h=4; *=data-parallel", {}, marks=LONG),
        pytest.param("0.*=local-sgd:h=4,fragments=2; *=local-sgd:h=6", {}, marks=LONG),
        pytest.param("0.*=elastic-averaging:h=4; *=data-parallel", {}, marks=LONG),
        pytest.param("0.*=gossip:publish_every=7; *=all-reduce:publish_every=5", {}, marks=LONG),
        ("0.*=local-sgd:h=4; *=data-parallel", {"consistency": Consistency.ASYNC}),
        ("0.*=data-parallel; *=local-sgd:h=1", {"backup_workers": 1}),
    ],
)
async def test_workers_that_join_and_die_leave_one_model(strategy: str, job: Any) -> None:
    """After the last round all workers have the same, and no sample is left out."""
    joining = threading.Event()

    def waits(run: elasticps.Run) -> None:
        if run.steps == 9 and not joining.is_set():
            joining.set()
            if not job:
                wait_until(lambda: rig.ledger.joining)

    def dying(run: elasticps.Run) -> None:
        recorded.run(run, lambda run: dies_at(run, "vote") if run.steps == 7 else None)

    async with Rig(start_workers=2, strategy=strategy, **job) as rig:
        recorded = Recorded(epochs=12, lr=0.003)
        first = [
            asyncio.create_task(as_worker(rig, lambda run: recorded.run(run, waits), f"w{n}"))
            for n in range(2)
        ]
        await asyncio.to_thread(joining.wait)
        third = asyncio.create_task(as_worker(rig, dying, "w2"))
        models = [await task for task in first]
        with pytest.raises(JobFailed):
            await third
    counts = recorded.counts()
    if not job:
        assert max(counts.values()) == 12
        assert sum(counts.values()) >= 12 * 60 - 7 * BATCH
        assert_equal(models[0], models[1])
    inputs, targets = dataset()[:]
    first, last = (nn.functional.mse_loss(each(inputs), targets) for each in (network(), models[0]))
    assert last < first / 4


async def test_a_worker_without_samples_in_a_round_loses_no_progress() -> None:
    """Rounds of 2 samples among 3 workers: whoever has none goes on from where it was."""

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        train(model, optimizer, run.data(dataset(20), batch_size=2, epochs=3))
        return model

    strategy = "0.*=local-sgd:h=2; *=data-parallel"
    async with Rig(start_workers=3, strategy=strategy, audit=True) as rig:
        models = await as_workers(rig, 3, script)
        verdicts = await rig.verdicts(3)
    for model in models:
        assert_equal(model, models[0])
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)


# -- what a part may be, and what a script sees -------------------------------------------------


THIRD_PARTY = """
from elasticps import ServedOptimizer, Strategy

class Signs(Strategy):
    '''Signs of gradients, their mean; its worker has its part's parameters alone.'''
    seen = set()
    def __init__(self, scale: float = 1.0):
        self.scale = scale
    def served_optimizer(self, chosen):
        return ServedOptimizer(name="sgd", options={"lr": 0.001})
    def step(self, worker):
        self.seen.update(worker.parameters)
        signs = {name: item.grad.sign() * self.scale for name, item in worker.parameters.items()}
        worker.exchange(signs, weight=1.0)

class Early(Strategy):
    steps_per_round = 4
    def step(self, worker):
        worker.exchange()

class Fails(Strategy):
    def step(self, worker):
        1 / 0

class Twice(Strategy):
    def step(self, worker):
        worker.exchange()
        worker.exchange()

class Stranger(Strategy):
    def step(self, worker):
        worker.exchange({"2.bias": worker.parameters["0.bias"]})
"""


@pytest.fixture
def acme(install: Install) -> None:
    names = {name.lower(): f"acme:{name}" for name in ("Signs", "Early", "Fails", "Twice")}
    install("acme", "acme", THIRD_PARTY, {STRATEGIES: {**names, "stranger": "acme:Stranger"}})


@pytest.mark.usefixtures("acme")
async def test_a_third_partys_strategy_is_a_part_as_any() -> None:
    """Beside all-reduce, whose parameters are stepped by the script's optimizer in the workers."""
    async with Rig(start_workers=2, strategy="0.*=all-reduce; *=signs:scale=2") as rig:
        models = await as_workers(rig, 2, trained("sgd", epochs=2))
    import acme  # type: ignore[import-not-found]

    assert acme.Signs.seen == {"2.weight", "2.bias"}
    assert_equal(models[0], models[1])
    (_, _, _, bias), start = models[0].parameters(), list(network().parameters())[3]
    steps = (bias.detach() - start.detach()) / 0.002 * 4  # the mean of two workers' signs, halves
    assert steps.abs().item() == pytest.approx(round(steps.abs().item()), abs=1e-3)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("strategy", "error", "text"),
    [
        ("0.*=data-parallel", UsageError, r"parameter 2.weight has no strategy.*limit: 0"),
        ("x=all-reduce; *=data-parallel", UsageError, "no parameter is left for the pattern x "),
        ("*=data-parallel; 0.*=all-reduce", UsageError, "no parameter is left for the pattern 0"),
        ("0.*=early; *=data-parallel", UsageError, "3 steps before its samples are used up"),
        ("0.*=twice; *=data-parallel", UsageError, "a second round in one step"),
        (
            "0.*=stranger; *=data-parallel",
            UsageError,
            "no parameter of this part is named '2.bias'",
        ),
        ("0.*=fails; *=data-parallel", PluginError, r"strategy fails: step\(\) failed: Zero"),
        ("0.*=local-sgd:h=x; *=data-parallel", PluginError, "local-sgd"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(strategy: str, error: Any, text: str) -> None:
    async with Rig(strategy=strategy) as rig:
        with pytest.raises(error, match=text):
            await as_worker(rig, trained("sgd", epochs=1))


@pytest.mark.parametrize(
    ("strategy", "job", "field"),
    [
        (DENSE_AND_REST, {"consistency": Consistency.ASYNC}, "consistency"),
        (DENSE_AND_REST, {"backup_workers": 1}, "consistency"),
        ("0.*=local-sgd:h=4; *=data-parallel", {"backup_workers": 1}, "strategy"),
    ],
)
async def test_a_job_that_a_part_cannot_serve_is_refused(
    strategy: str, job: dict[str, Any], field: str
) -> None:
    async with Rig(strategy=strategy, **job) as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, trained("sgd", epochs=1))
    assert caught.value.field == field


async def test_schedules_act_on_both_parts() -> None:
    """On the servers for the one, in the workers for the other; and on groups that are cut."""

    def steps(model: nn.Module, optimizer: Any, data: Any) -> nn.Module:
        schedule = optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
        for batch in data:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            schedule.step()
        return model

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        weights = [item for item in model.parameters() if item.dim() > 1]
        return [
            {"params": weights, "weight_decay": 0.1},
            {"params": [item for item in model.parameters() if item.dim() == 1], "lr": 0.002},
        ]

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", groups=groups(model), lr=0.01, momentum=0.9)
        return steps(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=2))

    local = network()
    steps(local, optim.SGD(groups(local), lr=0.01, momentum=0.9), batches(epochs=2))
    async with Rig(start_workers=2, strategy=DENSE_AND_REST) as rig:
        models = await as_workers(rig, 2, script)
    for model in models:
        assert_equal(model, local, exactly=False)


async def test_the_optimizers_state_is_both_parts_and_loads_again() -> None:
    def script(run: elasticps.Run, state: Any = None) -> Any:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=1))
        return model, (model.state_dict(), optimizer.state_dict())

    async with Rig(strategy=DENSE_AND_REST) as rig:
        model, state = await as_worker(rig, script)
    local = network()
    optimizer = optim.AdamW(local.parameters(), lr=0.01)
    train(local, optimizer, batches())
    wanted = optimizer.state_dict()["state"]
    assert set(state[1]["state"]) == set(wanted)
    for index, row in wanted.items():
        for key, item in row.items():
            torch.testing.assert_close(state[1]["state"][index][key], item, rtol=0, atol=1e-5)
    assert_equal(model, local, exactly=False)
    async with Rig(strategy=DENSE_AND_REST) as rig:
        again, _ = await as_worker(rig, lambda run: script(run, state))
    train(local, optimizer, batches())
    assert_equal(again, local, exactly=False)


async def test_no_threads_are_left_of_a_run() -> None:
    """Of one that ends in order, nor of one that a part has failed in the middle of a step."""
    for strategy in (DENSE_AND_REST, "0.*=data-parallel; *=local-sgd:h=4,overlap=1"):
        async with Rig(strategy=strategy) as rig:
            with contextlib.suppress(UsageError):
                await as_worker(rig, trained("sgd", epochs=1))

    def left() -> list[str]:
        gc.collect()
        return [each.name for each in threading.enumerate() if each.name.startswith(FIBERS)]

    wait_until(lambda: not left())


async def test_a_checkpoint_waits_until_every_part_is_published() -> None:
    """Its rounds push for the one part; the other has its values in the workers meanwhile."""
    published: dict[int, bool] = {}

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=2):
            backward(model, batch)
            optimizer.step()
            published[run.round] = run._member.is_published

    async with Rig(strategy=DENSE_AND_REST) as rig:
        await as_worker(rig, script)
    assert [round_ for round_, is_whole in published.items() if is_whole] == [5, 10, 15, 16]


# -- a part whose pushes are applied when they come ---------------------------------------------


ASYNC_REST = "0.*=all-reduce:publish_every=5; *=data-parallel:consistency=async"


@pytest.mark.parametrize(
    "strategy",
    [
        ASYNC_REST,
        "0.*=data-parallel; *=data-parallel:consistency=async",
        "0.*=local-sgd:h=4; *=data-parallel:consistency=async",
        "data-parallel:consistency=async",
    ],
)
async def test_one_workers_async_part_is_the_local_run(strategy: str) -> None:
    async with Rig(strategy=strategy, audit=True) as rig:
        model = await as_worker(rig, trained("sgd", epochs=2))
        await eventually(lambda: len(rig.finished) == 1)
        (finished,) = rig.finished.values()
    verdict = finished.verdict
    assert verdict is not None
    assert verdict.acknowledged > 0
    assert (verdict.lost, verdict.duplicated) == (0, 0)
    assert_equal(model, alone("sgd", epochs=2), exactly=False)


async def test_between_two_rounds_the_async_part_is_pushed_to_in_each_step() -> None:
    """Its workers wait for each other as seldom as the other part's rounds are."""

    def script(run: elasticps.Run) -> tuple[int, int]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.003)
        train(model, optimizer, run.data(dataset(), batch_size=10, epochs=4))
        return run.steps, run.round

    strategy = "0.*=local-sgd:h=4; *=data-parallel:consistency=async"
    async with Rig(start_workers=2, strategy=strategy, audit=True) as rig:
        results = await as_workers(rig, 2, script)
        blocks = [rig.primary(block).replica(block) for block in rig.entries if block]
        rows = [block._replica for block in blocks if isinstance(block, ParameterBlock)]
        applied = [sum(row.tally.count for row in each.applied.values()) for each in rows]
        in_rounds = [each.in_rounds for each in rows]
    assert results == [(24, 8), (24, 8)]
    for count, is_in_rounds in zip(applied, in_rounds, strict=True):
        assert count == (2 * 8 if is_in_rounds else 2 * 24)


@pytest.mark.parametrize("call", ["sum", "vote", "push_at_once"])
async def test_no_async_push_is_lost_or_doubled_when_a_worker_and_a_server_die(call: str) -> None:
    """The round begins anew, in a new generation: what was applied at once is not pushed again."""
    fallen = threading.Event()

    def dies(run: elasticps.Run) -> None:
        if run.steps == 9:
            dies_at(run, call)
            fallen.set()

    async with Rig(3, start_workers=3, strategy=ASYNC_REST, audit=True, replicas=2) as rig:
        recorded = Recorded(epochs=8, lr=0.003)
        staying = [
            asyncio.create_task(as_worker(rig, recorded.run, f"w{number}")) for number in range(2)
        ]
        dying = asyncio.create_task(as_worker(rig, lambda run: recorded.run(run, dies), "w2"))
        await asyncio.to_thread(fallen.wait)
        last = max(rig.entries)
        await rig.kill_server(rig.entries[last].primary)
        models = [await task for task in staying]
        with pytest.raises(JobFailed):
            await dying
        verdicts = await rig.verdicts(2)
    assert len(verdicts) == 2
    for verdict in verdicts:
        assert (verdict.lost, verdict.duplicated) == (0, 0)
    assert recorded.counts() == Counter(dict.fromkeys(range(60), 8))
    assert_equal(models[0], models[1])


@pytest.mark.parametrize(
    ("job", "field"),
    [({"checkpoint_dir": "/saved"}, "checkpoint_dir"), ({"backup_workers": 1}, "backup_workers")],
)
async def test_an_async_part_is_refused_where_a_round_must_be_all(job: Any, field: str) -> None:
    strategy = "0.*=data-parallel; *=data-parallel:consistency=async"
    async with Rig(strategy=strategy, **job) as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, trained("sgd", epochs=1))
    assert caught.value.field == field
