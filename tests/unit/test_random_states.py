"""Random states go through a checkpoint's file and go on where they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from elasticps.checkpoint.tensor_file import read_tensors
from elasticps.checkpoint.worker_file import WorkerState, write_worker
from elasticps.worker import random_states


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    states = random_states.taken()
    yield
    random_states.put_back(states)


def drawn() -> list[float]:
    numpys = np.random.standard_normal(3)
    return [*torch.rand(3).tolist(), *numpys.tolist(), random.random(), random.gauss(0, 1)]


def test_every_generator_goes_on_from_a_file_where_it_was(tmp_path: Path) -> None:
    random_states.seed_all(3)
    drawn()  # of normal numbers an odd one: the next is kept beside the state
    entry = write_worker(
        tmp_path, WorkerState(buffers={}, frozen={}, tied={}, random=random_states.taken())
    )
    wanted = drawn()
    random_states.seed_all(4)
    found = read_tensors(tmp_path, entry, "worker")
    random_states.put_back({key.removeprefix("random/"): item for key, item in found.items()})
    assert drawn() == wanted
    assert random_states.seed_of(random_states.taken()) == 3


def test_a_round_of_a_rank_has_numbers_of_its_own_and_always_the_same() -> None:
    seeds = {
        random_states.seed_for(seed, rank, round_)
        for seed in (0, 1)
        for rank in range(5)
        for round_ in range(20)
    }
    assert len(seeds) == 200
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    random_states.seed_all(random_states.seed_for(7, 1, 2))
    once = drawn()
    random_states.seed_all(random_states.seed_for(7, 1, 2))
    assert drawn() == once


def test_a_state_that_is_none_is_an_error_and_not_a_crash() -> None:
    before = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        random_states.put_back({"torch": torch.zeros(3, dtype=torch.uint8)})
    assert torch.equal(torch.get_rng_state(), before)
