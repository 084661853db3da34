"""Optimizers by param group: each group as its own optimizer has it, alone and on blocks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn, optim

from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.errors import PluginError, UsageError
from elasticps.optimizers.by_group import ByGroup, ByGroupOptimizer
from elasticps.testing.blocks import BlockServers
from elasticps.worker.optimizer_state import by_parameter

MATRICES = [(33, 65), (40, 30)]
OTHERS = [(1500,), (), (3, 5, 7)]


def parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in [*MATRICES, *OTHERS]]


def groups(items: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": items[:2], "optimizer": "muon", "lr": 0.02},
        {"params": items[2:4], "optimizer": "adagrad", "lr_decay": 0.1},
        {"params": items[4:], "optimizer": "adamw", "betas": (0.8, 0.99)},
    ]


def separate(items: list[nn.Parameter]) -> list[optim.Optimizer]:
    return [
        optim.Muon(items[:2], lr=0.02),
        optim.Adagrad(items[2:4], lr=0.01, lr_decay=0.1),
        optim.AdamW(items[4:], lr=0.01, betas=(0.8, 0.99)),
    ]


def with_gradients(items: list[nn.Parameter], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for item in items:
        item.grad = torch.randn(item.shape, generator=random)


def step(items: list[nn.Parameter], optimizers: list[optim.Optimizer], seed: int) -> None:
    with_gradients(items, seed)
    for optimizer in optimizers:
        optimizer.step()


@pytest.fixture
def plugin() -> ByGroupOptimizer:
    made: Any = load(OPTIMIZERS, "by-group", ByGroupOptimizer)
    return made


def test_each_group_steps_as_its_own_optimizer_bit_for_bit(plugin: ByGroupOptimizer) -> None:
    mine, others = parameters(), parameters()
    made, alone = plugin.create(groups(mine), {"lr": 0.01}), separate(others)
    for seed in range(10):
        step(mine, [made], seed)
        step(others, alone, seed)
    assert all(map(torch.equal, mine, others))


def test_blocks_and_their_state_are_those_of_the_local_run(plugin: ByGroupOptimizer) -> None:
    items = parameters()
    options = {"lr": 0.01}
    local = plugin.create(groups(items), options)
    named: list[tuple[str, torch.Tensor]] = [(f"p{index}", p) for index, p in enumerate(items)]
    servers = BlockServers(named, local, plugin, options)
    for seed in range(10):
        if seed in (0, 5):
            servers.migrate()
        local.param_groups[0]["lr"] *= 0.9
        with_gradients(items, seed)
        servers.step(servers.changed_options(local))
        local.step()
        assert not servers.differing()
    found = by_parameter(servers.memory, servers.fetch_states())
    for item in items:
        assert found[item].keys() == local.state[item].keys()
        for key, wanted in local.state[item].items():
            assert torch.equal(found[item][key], wanted)


def test_a_state_dict_goes_on_where_it_was_taken(plugin: ByGroupOptimizer) -> None:
    first = parameters()
    one = plugin.create(groups(first), {"lr": 0.01})
    for seed in range(5):
        step(first, [one], seed)
    second = copy.deepcopy(first)
    other = plugin.create(groups(second), {"lr": 0.5})
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for seed in range(5, 10):
        step(first, [one], seed)
        step(second, [other], seed)
    assert all(map(torch.equal, first, second))


def test_a_closure_is_evaluated_once_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = ByGroup([{"params": [parameter], "optimizer": "sgd", "lr": 0.25}], {})

    def closure() -> torch.Tensor:
        loss = parameter.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert parameter.tolist() == [0.75, 0.75]


@pytest.mark.parametrize("name", [None, 3, "by-group"])
def test_a_group_without_an_optimizer_of_its_own_is_refused(name: object) -> None:
    with pytest.raises(UsageError) as caught:
        ByGroup([{"params": parameters(), "optimizer": name}], {"lr": 0.1})
    assert caught.value.field == "optimizer"


def test_muon_refuses_what_is_no_matrix_and_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="by-group") as caught:
        ByGroup([{"params": iter(parameters()), "optimizer": "muon"}], {"lr": 0.1})
    assert caught.value.field == "groups"


def test_a_group_that_names_no_plugin_is_told_so() -> None:
    with pytest.raises(PluginError, match="did you mean adamw"):
        ByGroup([{"params": parameters(), "optimizer": "adamww"}], {"lr": 0.1})
