"""Every optimizer over real servers, as its class run locally: 100 rounds, moved in between.

Values and state are held against the local run bit for bit, without a tolerance: two workers' mean
is exact for two, and the kernels see the same numbers in the same order on one thread. On more of
them norms and matrix products (adafactor, lamb, lars, muon) may be summed in another order, and
differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import elasticps
from elasticps.api.plugins import OPTIMIZERS, discover
from elasticps.core.blocks import partition
from elasticps.testing.members import Blueprint, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.worker.optimizer_state import by_parameter
from tests.support.scripts import (
    BATCH,
    as_worker,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
    train,
)

ROUNDS = 100
MOVES = (30, 60)
SHAPES = ((2500,), (33, 65), (3, 5, 7), ())
MATRICES = ((33, 65), (40, 30), (1, 9))

ELEMENTWISE: dict[str, dict[str, Any]] = {
    "adadelta": {"lr": 0.5, "weight_decay": 0.01},
    "adagrad": {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1},
    "adam": {"lr": 0.01, "amsgrad": True},
    "adamax": {"lr": 0.01},
    "adamw": {"lr": 0.01, "weight_decay": 0.1},
    "asgd": {"lr": 0.01, "t0": 40},
    "ftrl": {"lr": 0.1, "l1": 0.01, "l2": 0.1},
    "lion": {"lr": 0.01, "weight_decay": 0.1},
    "nadam": {"lr": 0.01, "weight_decay": 0.01, "decoupled_weight_decay": True},
    "radam": {"lr": 0.01},
    "rmsprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "rprop": {"lr": 0.01},
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
}
WHOLE: dict[str, dict[str, Any]] = {
    "adafactor": {"lr": 0.01, "weight_decay": 0.01},
    "lamb": {"lr": 0.01},
    "lars": {"lr": 1.0},
    "muon": {"lr": 0.02},
}
CASES = {**ELEMENTWISE, **WHOLE}


def blueprint(name: str) -> Blueprint:
    shapes = MATRICES if name == "muon" else SHAPES
    return Blueprint(shapes=shapes, optimizer=name, options=CASES[name])


def test_the_table_holds_every_optimizer_that_is_installed() -> None:
    assert {plugin.name for plugin in discover(OPTIMIZERS)} == {*CASES, "by-group"}


@pytest.mark.parametrize("name", CASES)
def test_a_whole_parameter_is_one_block_where_the_optimizer_needs_it(name: str) -> None:
    model = blueprint(name).model
    assert model.elementwise == (name in ELEMENTWISE)
    pieces = [block.numel for block in partition(model)]
    whole = [parameter.numel for parameter in model.parameters]
    assert pieces == whole if name in WHOLE else max(pieces) < max(whole)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a shard server runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


async def assert_same_state(member: Member, local: LocalRun) -> None:
    """The servers' state, put together, is the local optimizer's."""
    states = await member.exchange.states()
    found = by_parameter(member.exchange._memory, states)
    for mine, its in zip(member.parameters, local.parameters, strict=True):
        wanted = local.optimizer.state[its]
        assert found[mine].keys() == wanted.keys()
        for key, item in wanted.items():
            assert torch.equal(torch.as_tensor(found[mine][key]), torch.as_tensor(item)), key


@pytest.mark.parametrize("name", CASES)
async def test_it_is_the_local_optimizer_bit_for_bit_while_its_blocks_move(name: str) -> None:
    plan = blueprint(name)
    local = LocalRun(plan)
    async with Rig(servers=2, start_workers=2) as rig:
        members = await rig.workers(2, plan)
        servers = list(rig.servers)
        for number in range(ROUNDS):
            if number in MOVES:
                await rig.move_all(servers[MOVES.index(number)])
            given = [plan.random(2 * number + index) for index in range(len(members))]
            await together(*(m.step(g) for m, g in zip(members, given, strict=True)))
            local.step([(gradients, 1.0) for gradients in given])
            assert all(map(torch.equal, members[0].values(), local.parameters)), number
        await assert_same_state(members[0], local)


def by_kind(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, and all others."""
    items = list(model.parameters())
    return [item for item in items if item.dim() == 2], [item for item in items if item.dim() != 2]


async def test_each_param_group_may_have_an_optimizer_of_its_own() -> None:
    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        matrices, others = by_kind(model)
        groups = [
            {"params": matrices, "optimizer": "muon"},
            {"params": others, "optimizer": "adamw", "lr": 0.01},
        ]
        optimizer = run.optimizer(model, "by-group", groups=groups, lr=0.02)
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=2))
        return model

    async with Rig() as rig:
        model = await as_worker(rig, script)
    local = network()
    matrices, others = by_kind(local)
    muon, adamw = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)
    for batch in batches(epochs=2):
        muon.zero_grad()
        adamw.zero_grad()
        backward(local, batch)
        muon.step()
        adamw.step()
    assert_equal(model, local)
