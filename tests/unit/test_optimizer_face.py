"""What a script sees of its optimizer: torch's own behaviour, over state that lives in blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from elasticps.api.optimizer import Optimizer, TorchOptimizer
from elasticps.core.blocks import Hyperparameters
from elasticps.errors import UsageError
from elasticps.optimizers import builtin
from elasticps.optimizers.ftrl import Ftrl
from elasticps.optimizers.lamb import Lamb
from elasticps.optimizers.lars import Lars
from elasticps.optimizers.muon import muon
from elasticps.testing.blocks import BlockServers
from elasticps.worker.clipping import Clipping
from elasticps.worker.optimizer import ElasticOptimizer
from elasticps.worker.optimizer_state import by_block, by_parameter
from elasticps.worker.parameters import BlockMemory, describe, memory_of
from elasticps.worker.training import Training

Shapes = list[tuple[int, ...]]
SHAPES: Shapes = [(1,), (1025,), (33, 65), (3, 5, 70), (), (1, 9), (9, 1)]


def parameters(shapes: Shapes) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]


def with_gradients(items: list[nn.Parameter], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for item in items:
        item.grad = torch.randn(item.shape, generator=random)


def named(items: list[nn.Parameter]) -> list[tuple[str, torch.Tensor]]:
    return [(f"p{index}", item) for index, item in enumerate(items)]


def blocks_of(items: list[nn.Parameter], *, elementwise: bool = True) -> list[BlockMemory]:
    model = describe(
        named(items),
        [{"params": items}],
        optimizer="x",
        options={},
        elementwise=elementwise,
        block_bytes=4096,
    )
    return memory_of(model, items)


def assert_equal(one: Any, other: Any) -> None:
    """Two state dicts are equal, tensors bit for bit and in shape and dtype."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    elif torch.is_tensor(one):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


# -- state by block and by parameter ------------------------------------------------------------

KINDS: list[tuple[type[optim.Optimizer], dict[str, Any], bool]] = [
    (optim.AdamW, {"amsgrad": True}, True),
    (optim.SGD, {"momentum": 0.9}, True),
    (optim.SGD, {}, True),
    (optim.Adagrad, {}, True),
    (optim.RMSprop, {"momentum": 0.9, "centered": True}, True),
    (optim.Adadelta, {}, True),
    (optim.Adamax, {}, True),
    (optim.ASGD, {}, True),
    (optim.NAdam, {}, True),
    (optim.RAdam, {}, True),
    (optim.Rprop, {}, True),
    (Ftrl, {}, True),
    (optim.Adafactor, {}, False),
    (Lamb, {}, False),
    (Lars, {}, False),
]
ALL_KINDS = pytest.mark.parametrize(
    ("cls", "options", "elementwise"), KINDS, ids=[kind[0].__name__ for kind in KINDS]
)


def stepped(cls: type[optim.Optimizer], items: list[nn.Parameter], **options: Any) -> Any:
    """A local optimizer that has taken three steps, the last parameter never with a gradient."""
    local = cls(items, **options)
    for seed in range(3):
        with_gradients(items[:-1], seed)
        local.step()
    return local


def there_and_back(items: list[nn.Parameter], state: Any, *, elementwise: bool = True) -> Any:
    memory = blocks_of(items, elementwise=elementwise)
    return by_parameter(memory, by_block(memory, state))


@ALL_KINDS
def test_state_cut_into_blocks_and_put_together_is_the_same(
    cls: type[optim.Optimizer], options: dict[str, Any], *, elementwise: bool
) -> None:
    items = parameters(SHAPES)
    local = stepped(cls, items, **options)
    wanted = {item: state for item, state in local.state.items() if state}
    assert_equal(there_and_back(items, local.state, elementwise=elementwise), wanted)


@ALL_KINDS
def test_state_put_together_loads_into_the_local_class(
    cls: type[optim.Optimizer], options: dict[str, Any], *, elementwise: bool
) -> None:
    items = parameters(SHAPES)
    local = stepped(cls, items, **options)
    copies = copy.deepcopy(items)
    resumed = cls(copies, **options)
    state = there_and_back(items, local.state, elementwise=elementwise)
    state_dict = local.state_dict()
    number = {item: index for index, item in enumerate(items)}
    state_dict["state"] = {number[item]: entry for item, entry in state.items()}
    resumed.load_state_dict(state_dict)
    for optimizer, trained in ((local, items), (resumed, copies)):
        with_gradients(trained, 9)
        optimizer.step()
    assert_equal([item.data for item in copies], [item.data for item in items])


def test_each_block_carries_its_part_of_the_state_and_the_present_value() -> None:
    items = parameters([(2500,)])
    local = stepped(optim.AdamW, [*items, *parameters([(1,)])])
    memory = blocks_of(items)
    cut = by_block(memory, local.state)
    assert [meta.tensors[0].shape for meta, _ in cut] == [(1024,), (1024,), (452,)]
    for item, (meta, payload) in zip(memory, cut, strict=True):
        assert [row.key for row in meta.tensors] == ["value", "step", "exp_avg", "exp_avg_sq"]
        assert sum(row.nbytes for row in meta.tensors) == len(payload)
        assert payload[: item.block.nbytes] == item.value
        first = local.state[items[0]]["exp_avg"][item.block.start : item.block.stop]
        start = item.block.nbytes + 4
        assert payload[start : start + item.block.nbytes] == first.numpy().tobytes()


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 50), max_size=3).map(tuple), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    keys=st.sets(st.sampled_from(["m", "v", "scale", "count", "flag", "none"])),
)
def test_any_state_of_tensors_and_numbers_survives_the_round_trip(
    shapes: Shapes, dtype: torch.dtype, keys: set[str]
) -> None:
    items = [nn.Parameter(item.to(dtype)) for item in parameters(shapes)]
    made: dict[str, Callable[[torch.Tensor], Any]] = {
        "m": torch.randn_like,
        "v": lambda item: torch.rand_like(item, dtype=torch.float32),
        "scale": lambda _: torch.tensor(2.5),
        "count": lambda _: 7,
        "flag": lambda _: True,
        "none": lambda _: None,
    }
    state = {item: {key: made[key](item) for key in sorted(keys)} for item in items}
    assert_equal(there_and_back(items, state), state if keys else {})


# -- the optimizer itself -----------------------------------------------------------------------


class LocalTraining:
    """The five things that the optimizer asks for, answered by blocks in this process."""

    def __init__(self, servers: BlockServers) -> None:
        self.memory = servers.memory
        self.fetch_states = servers.fetch_states
        self.give_states = servers.give_states
        self.read_values = servers.pull
        self._servers = servers

    @property
    def round(self) -> int:
        return self._servers.round

    def step(self, changed_options: list[Hyperparameters]) -> None:
        self._servers.step(changed_options)
        self._servers.pull()


Pair = tuple[ElasticOptimizer, list[nn.Parameter], optim.Optimizer, list[nn.Parameter]]


def pair(plugin: Optimizer = builtin.adamw, shapes: Shapes = SHAPES, **options: Any) -> Pair:
    """An elastic optimizer and a local one of the same class, each with its own parameters."""
    mine, others = parameters(shapes), parameters(shapes)
    options = {"lr": 0.01, **options}
    made = plugin.create([{"params": mine}], options)
    training = cast("Training", LocalTraining(BlockServers(named(mine), made, plugin, options)))
    elastic = ElasticOptimizer(training, made.param_groups, made.defaults, Clipping(None))
    return elastic, mine, plugin.create([{"params": others}], options), others


def step_both(both: Pair, steps: int = 3, seed: int = 0) -> None:
    elastic, mine, local, others = both
    for number in range(steps):
        for optimizer, items in ((elastic, mine), (local, others)):
            with_gradients(items, 100 * seed + number)
            optimizer.step()
    assert_equal([item.data for item in mine], [item.data for item in others])


PLUGINS = [item for item in vars(builtin).values() if isinstance(item, TorchOptimizer)]
ALL_PLUGINS = pytest.mark.parametrize("plugin", PLUGINS, ids=repr)


@ALL_PLUGINS
def test_state_dict_is_the_local_optimizers(plugin: Optimizer) -> None:
    both = pair(plugin)
    step_both(both)
    elastic, _, local, _ = both
    assert_equal(elastic.state_dict(), local.state_dict())
    assert not elastic.state


@ALL_PLUGINS
def test_a_saved_state_dict_loads_here_and_there(plugin: Optimizer) -> None:
    before = pair(plugin)
    step_both(before)
    saved = before[0].state_dict()
    elastic, _, local, _ = after = pair(plugin, lr=0.5)
    for optimizer in (elastic, local):
        optimizer.load_state_dict(copy.deepcopy(saved))
    assert elastic.param_groups[0]["lr"] == 0.01
    assert not elastic.state
    step_both(after, seed=1)


def test_muons_state_loads_here_and_there() -> None:
    shapes: Shapes = [(33, 65), (1, 9), (9, 1)]
    before, after = (pair(muon, shapes) for _ in range(2))
    step_both(before)
    assert_equal(before[0].state_dict(), before[2].state_dict())
    for optimizer, other in ((after[0], before[2]), (after[2], before[0])):
        optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    step_both(after, seed=1)


def test_values_set_before_the_state_is_loaded_reach_the_servers() -> None:
    before = pair()
    step_both(before)
    elastic, mine, local, others = after = pair()
    for items in (mine, others):
        for item, trained in zip(items, before[1], strict=True):
            item.data.copy_(trained)
    for optimizer in (elastic, local):
        optimizer.load_state_dict(before[2].state_dict())
    step_both(after, seed=1)


class WholeMomentum(optim.Optimizer):
    """Needs parameters in their shape and keeps state of the same shape, as Muon does."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for item in group["params"]:
                state = self.state[item]
                momentum = state.setdefault("momentum", torch.zeros_like(item))
                momentum.mul_(0.9).add_(item.grad)
                item.sub_(momentum.sum(dim=-1, keepdim=True) * group["lr"])


def test_state_of_whole_parameters_keeps_its_shape_on_the_servers() -> None:
    plugin = TorchOptimizer(WholeMomentum, elementwise=False)
    before = pair(plugin, [(3, 4), (5,)])
    step_both(before)
    elastic, _, local, _ = after = pair(plugin, [(3, 4), (5,)])
    for optimizer in (elastic, local):
        optimizer.load_state_dict(before[2].state_dict())
    step_both(after, seed=1)


def test_state_loaded_after_the_first_round_does_not_replace_the_jobs() -> None:
    both = pair()
    step_both(both)
    elastic, _, local, _ = both
    stale = copy.deepcopy(local.state_dict())
    stale["state"][0]["exp_avg"].fill_(9.0)
    elastic.load_state_dict(stale)
    step_both(both, seed=1)


def test_a_scheduler_changes_what_the_servers_use() -> None:
    both = pair()
    elastic, _, local, _ = both
    schedulers = [
        optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
        for optimizer in (elastic, local)
    ]
    for number in range(10):
        step_both(both, steps=1, seed=number)
        for scheduler in schedulers:
            scheduler.step()
    assert elastic.param_groups[0]["lr"] == local.param_groups[0]["lr"]


def test_changed_options_are_those_that_differ_from_the_start() -> None:
    elastic, _, _, _ = pair(lr=0.5, betas=(0.9, 0.99))
    assert elastic.changed_options() == [{}]
    group = elastic.param_groups[0]
    group["betas"] = [0.9, 0.99]
    group["of_a_scheduler"] = 3
    assert elastic.changed_options() == [{}]
    group["betas"] = (0.8, 0.99)
    group["lr"] = torch.tensor(0.25)
    assert elastic.changed_options() == [{"betas": [0.8, 0.99], "lr": 0.25}]
    group["lr"] = lambda: 0.1
    with pytest.raises(UsageError) as caught:
        elastic.changed_options()
    assert caught.value.field == "lr"


def test_closure_is_evaluated_once_with_gradients_on() -> None:
    elastic, mine, _, _ = pair(shapes=[(2,)])
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = mine[0].sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    before = mine[0].detach().clone()
    with torch.no_grad():
        loss = elastic.step(closure)
    assert calls == [True]
    assert torch.equal(loss, before.sum())
    assert not torch.equal(mine[0], before)


def test_a_param_group_cannot_be_added_to_a_job_that_has_begun() -> None:
    elastic, _, _, _ = pair()
    with pytest.raises(UsageError) as caught:
        elastic.add_param_group({"params": parameters([(1,)])})
    assert caught.value.field == "param_group"
    assert len(elastic.param_groups) == 1
