"""``run.data``: what it reads, how it is loaded, and that no sample is lost or read twice."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import IterableDataset

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.core.ranges import Range
from elasticps.errors import JobFailed, UsageError
from elasticps.testing.rig import Rig
from elasticps.testing.scripts import Died
from elasticps.worker.loading import Loader
from tests.support.scripts import (
    as_worker,
    as_workers,
    assert_equal,
    batches,
    dataset,
    loss_of,
    network,
    train,
)

SIZE, BATCH, EPOCHS = 37, 8, 2
EVERYTHING = Counter(dict.fromkeys(range(SIZE), EPOCHS))


class Squares:
    """Item i is i squared, and the process that it was read in."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return index, index * index, os.getpid()


class Many(Squares):
    """Reads a batch at a time, as Hugging Face data sets do."""

    def __getitems__(self, indices: list[int]) -> list[tuple[int, int, int]]:
        assert indices
        return [self[index] for index in indices]


class Counting(IterableDataset[tuple[int, int, int]]):
    """A stream whose order depends on the epoch, as it does where its buffer is shuffled."""

    def __init__(self, size: int = SIZE) -> None:
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for number in range(self.size):
            item = (number + self.epoch) % self.size
            yield item, item * item, os.getpid()


def reading(run: elasticps.Run, dataset: Any, **options: Any) -> list[list[tuple[int, int, int]]]:
    """Train on ``dataset``; the batches that this worker read."""
    optimizer = run.optimizer(network(), "sgd", lr=0.0)
    data = run.data(dataset, batch_size=BATCH, epochs=EPOCHS, collate=list, **options)
    batches = []
    for batch in data:
        batches.append(batch)
        optimizer.step()
    return batches


def indices(batches: list[list[tuple[int, int, int]]]) -> list[int]:
    for index, square, _ in (item for batch in batches for item in batch):
        assert square == index * index
    return [item[0] for batch in batches for item in batch]


def processes(batches: list[list[tuple[int, int, int]]]) -> set[int]:
    return {item[2] for batch in batches for item in batch}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Squares(), Many()], ids=["items", "batches"])
async def test_one_worker_reads_the_promised_order_whoever_loads_it(
    dataset: Squares, workers: int
) -> None:
    async with Rig() as rig:
        batches = await as_worker(rig, lambda run: reading(run, dataset, num_workers=workers))
    order = [elasticps.sample_order(SIZE, 0, epoch).tolist() for epoch in range(EPOCHS)]
    assert indices(batches) == [*order[0], *order[1]]
    assert (os.getpid() in processes(batches)) == (workers == 0)


@pytest.mark.parametrize("policy", ["static", "leased", "local"])
async def test_two_workers_with_loaders_read_everything_once(policy: str) -> None:
    def script(run: elasticps.Run) -> list[list[tuple[int, int, int]]]:
        options: dict[str, Any] = {"num_workers": 1, "policy": policy, "chunk": 4}
        return reading(run, Squares(), **options)

    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, script)
    assert Counter(indices(one + other)) == EVERYTHING


@pytest.mark.parametrize("consistency", [Consistency.BOUNDED, Consistency.ASYNC])
async def test_the_next_batches_are_loaded_beforehand_without_rounds_too(
    consistency: Consistency,
) -> None:
    def script(run: elasticps.Run) -> tuple[list[int], int]:
        optimizer = run.optimizer(network(), "sgd", lr=0.0)
        data = run.data(Squares(), batch_size=BATCH, epochs=EPOCHS, collate=list, num_workers=1)
        read, told = [], []
        for batch in data:
            read.extend(item[0] for item in batch)
            told.append(run._training.samples_ahead[:1])
            optimizer.step()
        return read, sum(map(bool, told))

    async with Rig(consistency=consistency) as rig:
        read, foreseen = await as_worker(rig, script)
    order = [elasticps.sample_order(SIZE, 0, epoch).tolist() for epoch in range(EPOCHS)]
    assert read == [*order[0], *order[1]]
    assert foreseen >= len(read) // BATCH - 2


async def test_a_step_on_several_batches_counts_what_all_of_them_have() -> None:
    """Two workers that accumulate three batches step as one that has all of it at once."""

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        data = run.data(dataset(SIZE), batch_size=5, accumulate=3, epochs=EPOCHS)
        for number, (inputs, targets) in enumerate(data):
            (loss_of(model(inputs), targets) * data.fraction).backward()
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
        assert run.round == EPOCHS * 3
        return model

    async with Rig(start_workers=2) as rig:
        one, _ = await as_workers(rig, 2, script)
    alone = network()
    train(alone, optim.SGD(alone.parameters(), lr=0.1), batches(EPOCHS, SIZE, 15))
    assert_equal(one, alone, exactly=False)


Accumulating = list[list[list[tuple[int, int, int]]]]


def accumulating(run: elasticps.Run, dataset: Any, accumulate: int, **options: Any) -> Accumulating:
    """The batches of each step that this worker took."""
    optimizer = run.optimizer(network(), "sgd", lr=0.0)
    data = run.data(dataset, batch_size=4, accumulate=accumulate, collate=list, **options)
    steps: Accumulating = [[]]
    for batch in data:
        steps[-1].append(batch)
        if len(steps[-1]) == accumulate:
            optimizer.step()
            steps.append([])
    assert run.world > 1 or len(data) == accumulate * run.round
    return steps[:-1]


@pytest.mark.parametrize("consistency", list(Consistency))
async def test_accumulated_batches_are_loaded_beforehand_and_read_once(
    consistency: Consistency,
) -> None:
    async with Rig(consistency=consistency, start_workers=2) as rig:
        script = partial(
            accumulating, dataset=Squares(), accumulate=2, epochs=EPOCHS, num_workers=1
        )
        one, other = await as_workers(rig, 2, script)
    # Where a worker had a single sample left, both of the step's batches have that one.
    steps = [set(indices(step)) for step in one + other]
    assert Counter(index for step in steps for index in step) == EVERYTHING


@pytest.mark.parametrize("dataset", [Squares(), Counting()], ids=["map", "stream"])
@pytest.mark.parametrize("workers", [0, 1])
async def test_a_step_with_fewer_samples_than_batches_has_them_in_each(
    dataset: Any, workers: int
) -> None:
    options: dict[str, Any] = {"shuffle": False} if isinstance(dataset, Squares) else {}
    options |= {"length": SIZE} if isinstance(dataset, Counting) else {}
    async with Rig() as rig:
        script = partial(accumulating, dataset=dataset, accumulate=3, num_workers=workers)
        *steps, last = await as_worker(rig, lambda run: script(run, **options))
    assert indices([batch for step in steps for batch in step]) == list(range(36))
    assert [indices([batch]) for batch in last] == [[36]] * 3


@pytest.mark.parametrize(
    ("accumulate", "every", "said"),
    [(1, 2, "accumulate=N"), (2, 1, "after batch 1 of accumulate=2"), (2, 3, "0 calls")],
)
async def test_batches_that_are_not_stepped_as_said_are_refused_with_the_way_out(
    accumulate: int, every: int, said: str
) -> None:
    def script(run: elasticps.Run) -> None:
        optimizer = run.optimizer(network(), "sgd", lr=0.0)
        data = run.data(Squares(), batch_size=BATCH, accumulate=accumulate, collate=list)
        for number, _ in enumerate(data, 1):
            if number % every == 0:
                optimizer.step()

    async with Rig() as rig:
        with pytest.raises(UsageError, match=said):
            await as_worker(rig, script)


async def test_what_a_dead_worker_had_loaded_ahead_is_read_by_the_others_once() -> None:
    counted: list[int] = []
    lock = threading.Lock()

    def script(run: elasticps.Run) -> None:
        optimizer = run.optimizer(network(), "sgd", lr=0.0)
        # A process of its own for each would be a copy of the other's sockets, in this one test.
        loaders, dies = run.rank, run.rank == 1
        options: dict[str, Any] = {"collate": list, "num_workers": loaders}
        for batch in run.data(Squares(), batch_size=BATCH, epochs=EPOCHS, **options):
            if run.round == 3 and dies:
                raise Died("in the middle of its batch")
            optimizer.step()
            with lock:
                counted.extend(item[0] for item in batch)

    async with Rig(start_workers=2) as rig:
        one, other = rig.environment("w0"), rig.environment("w1")
        ends = await _both(script, one, other)
        assert sorted(type(end).__name__ for end in ends) == ["Died", "NoneType"]
    assert Counter(counted) == EVERYTHING


async def _both(script: Any, *environments: dict[str, str]) -> list[Any]:
    def live(environment: dict[str, str]) -> Any:
        with elasticps.join(environment) as run:
            script(run)

    lives = [asyncio.to_thread(live, environment) for environment in environments]
    return await asyncio.gather(*lives, return_exceptions=True)


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_stream_is_shared_by_counting(workers: int) -> None:
    def script(run: elasticps.Run) -> list[list[tuple[int, int, int]]]:
        return reading(run, Counting(), length=SIZE, num_workers=workers)

    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, script)
    assert Counter(indices(one + other)) == EVERYTHING


class Broken(Squares):
    def __getitem__(self, index: int) -> tuple[int, int, int]:
        if index == 3:
            raise ZeroDivisionError(index)
        return super().__getitem__(index)


def test_a_data_sets_error_comes_out_as_it_is_and_the_next_batch_is_loaded_all_the_same() -> None:
    loader = Loader(Broken(), list, lambda samples: [samples[0].start], {"num_workers": 1})
    batches = [(Range(number, number + 1),) for number in range(5)]
    loader.expect(batches)
    with pytest.raises(ZeroDivisionError):
        loader.load(batches[3])
    assert loader.load(batches[4])[0][:2] == (4, 16)
    loader.close()


def test_what_is_no_longer_expected_is_loaded_for_nothing_and_not_given() -> None:
    loader = Loader(Squares(), list, lambda samples: [samples[0].start], {"num_workers": 2})
    batches = [(Range(number, number + 1),) for number in range(20)]
    for turn in range(0, 10, 2):
        loader.expect(batches[turn : turn + 6])
        assert loader.load(batches[turn])[0][0] == turn
        assert loader.load(batches[turn + 7])[0][0] == turn + 7
    loader.close()


def test_the_chunks_of_an_order_stay_together_and_every_index_is_there_once() -> None:
    order = elasticps.sample_order(103, 7, 1, chunk=10)
    assert sorted(order.tolist()) == list(range(103))
    assert order.tolist() != elasticps.sample_order(103, 7, 2, chunk=10).tolist()
    changes = int((order // 10).diff().ne(0).sum())
    assert changes == 10
    assert torch.equal(order, elasticps.sample_order(103, 7, 1, chunk=10))


async def test_len_counts_the_global_batches_of_all_epochs() -> None:
    def script(run: elasticps.Run) -> tuple[int, int]:
        optimizer = run.optimizer(network(), "sgd", lr=0.0)
        data = run.data(Squares(), batch_size=BATCH, epochs=EPOCHS, collate=list)
        steps = sum(1 for _ in iter_steps(data, optimizer))
        return len(data), steps

    async with Rig() as rig:
        assert await as_worker(rig, script) == (10, 10)


def iter_steps(data: Any, optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    for batch in data:
        yield batch
        optimizer.step()


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a stream without a length": (Counting(), {}, "dataset"),
    "a stream that is to be shuffled": (Counting(), {"length": 5, "shuffle": True}, "shuffle"),
    "a stream with several readers": (Counting(), {"length": 5, "num_workers": 2}, "num_workers"),
    "a stream that lies somewhere": (Counting(), {"length": 5, "local": [1]}, "local"),
    "a stream that ends early": (Counting(9), {"length": 10}, "length"),
    "what can be read only once": (iter([1, 2]), {"length": 2}, "dataset"),
    "a length that is known": (Squares(), {"length": 5}, "length"),
    "a policy that nobody has": (Squares(), {"policy": "leasd"}, "policy"),
    "a step of no batches": (Squares(), {"accumulate": 0}, "accumulate"),
    "a step of too many batches": (Squares(), {"accumulate": 1 << 62}, "accumulate"),
    "a chunk of none": (Squares(), {"chunk": 0}, "chunk"),
    "a local index that is none": (Squares(), {"local": [SIZE]}, "local"),
    "a local index that is no number": (Squares(), {"local": ["a"]}, "local"),
    "a number of loaders that is none": (Squares(), {"num_workers": "2"}, "num_workers"),
    "a number of loaders below none": (Squares(), {"num_workers": -1}, "num_workers"),
    "a DataLoader's option that is wrong": (Squares(), {"timeout": -1}, "run.data"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_data_that_cannot_be_read_whole_is_refused_by_name(what: str) -> None:
    dataset, options, field = REFUSED[what]
    async with Rig() as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, lambda run: reading(run, dataset, **options))
    assert caught.value.field == field


async def test_who_comes_when_all_is_read_is_no_second_main_worker() -> None:
    tails: list[str] = []

    def script(run: elasticps.Run) -> None:
        reading(run, Squares())
        if run.is_main:
            tails.append("evaluated")

    async with Rig() as rig:
        await as_worker(rig, script, "w1")
        left = await as_worker(rig, script, "w2")
        assert isinstance(left, elasticps.WorkerRetired)
        assert "main worker has ended" in left.reason
        assert rig.finished["w2"].left is False
    assert tails == ["evaluated"]


async def test_a_script_cannot_change_the_policy_that_the_job_was_submitted_with() -> None:
    async with Rig(data_policy="static") as rig:
        with pytest.raises(UsageError, match="submitted with --data-policy static"):
            await as_worker(rig, lambda run: reading(run, Squares(), policy="leased"))
        await as_worker(rig, lambda run: reading(run, Squares(), policy="static"))


async def test_workers_that_ask_for_two_policies_are_told_so() -> None:
    first = threading.Event()

    def script(run: elasticps.Run) -> str:
        policy = "static" if first.is_set() else "leased"
        first.set()
        try:
            reading(run, Squares(), policy=policy)
        except JobFailed as error:
            return str(error)
        return ""

    async with Rig(start_workers=2) as rig:
        said = await as_workers(rig, 2, script)
    assert [text for text in said if "data policy is" in text]
