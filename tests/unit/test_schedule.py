"""A scheduler that is brought to a round stands where one stands that was there throughout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import optim
from torch.optim import lr_scheduler

from elasticps.errors import UsageError
from elasticps.worker.schedule import Schedule, steps_of
from tests.support.schedulers import SCHEDULERS

ALL_SCHEDULERS = pytest.mark.parametrize("name", SCHEDULERS)


def an_optimizer() -> optim.Optimizer:
    """With two param groups, and steps that count as taken."""
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    groups = [{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.03}]
    made = optim.SGD(groups, momentum=0.9)
    made._opt_called = True  # type: ignore[attr-defined]
    return made


def options_of(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {key: item for key, item in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def after(name: str, steps: int) -> list[dict[str, Any]]:
    """The options of who takes one step of the scheduler after the other."""
    optimizer = an_optimizer()
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(steps):
        scheduler.step()
    assert steps_of(scheduler) == steps
    return options_of(optimizer)


def test_the_table_holds_every_scheduler_of_torch() -> None:
    found = {
        name
        for name, item in vars(lr_scheduler).items()
        if isinstance(item, type) and issubclass(item, lr_scheduler.LRScheduler)
    }
    found -= {"LRScheduler", "_LRScheduler", "ReduceLROnPlateau"}
    assert found | {"SWALR"} == SCHEDULERS.keys()


@ALL_SCHEDULERS
def test_who_joins_later_has_the_options_of_who_was_there(name: str) -> None:
    for rounds in (0, 1, 2, 7, 23):
        optimizer = an_optimizer()
        Schedule(SCHEDULERS[name](optimizer), 1).bring_to(rounds)
        assert options_of(optimizer) == after(name, rounds)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULERS)),
    rounds=st.lists(st.integers(0, 30), max_size=6),
    every=st.integers(1, 4),
)
def test_rounds_that_were_missed_are_made_up_for(name: str, rounds: list[int], every: int) -> None:
    optimizer = an_optimizer()
    schedule = Schedule(SCHEDULERS[name](optimizer), every)
    for number in sorted(rounds):
        schedule.bring_to(number)
        assert options_of(optimizer) == after(name, number // every)


@ALL_SCHEDULERS
def test_steps_that_the_script_takes_itself_are_not_taken_again(name: str) -> None:
    optimizer = an_optimizer()
    scheduler = SCHEDULERS[name](optimizer)
    schedule = Schedule(scheduler, 1)
    for number in range(6):
        schedule.bring_to(number)
        assert options_of(optimizer) == after(name, number)
        scheduler.step()


def test_a_plateau_is_refused_and_told_what_to_do() -> None:
    plateau = lr_scheduler.ReduceLROnPlateau(an_optimizer())
    with pytest.raises(UsageError, match="adopt_options") as caught:
        Schedule(plateau, 1)
    assert caught.value.field == "scheduler"


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_every_that_is_no_number_of_rounds_is_refused(every: Any) -> None:
    with pytest.raises(UsageError) as caught:
        Schedule(SCHEDULERS["StepLR"](an_optimizer()), every)
    assert caught.value.field == "every"
