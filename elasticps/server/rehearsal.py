"""Can a shard server run a job's plugin? ``python -m elasticps.server.rehearsal GROUP CHOICE``.

A process of its own, because a plugin may hang or end it, and a shard server has other jobs'
blocks. An optimizer is chosen by its model in small (msgpack, as hexadecimal digits), the others by
their texts. Strategies and placements, which do not run there, are only made: do they take their
options?
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from elasticps.api.choice import load_choice
from elasticps.api.data_policy import DataPolicy
from elasticps.api.job_codec import load_codec
from elasticps.api.lazy_compiler import leave_compiler_unloaded
from elasticps.api.optimizer import Optimizer
from elasticps.api.placement import Placement
from elasticps.api.plugins import CODECS, DATA_POLICIES, OPTIMIZERS, PLACEMENTS, STRATEGIES, load
from elasticps.api.strategy_choice import load_strategy
from elasticps.api.trial import Row, telling
from elasticps.checkpoint.snapshot import VALUE
from elasticps.core.blocks import Block, Model, partition
from elasticps.core.ids import WorkerId
from elasticps.core.lending import Lending, settled
from elasticps.core.ranges import Range, Supply
from elasticps.errors import ElasticError, PluginError
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.messages import StateMeta, decode, encode

STEPS = 3
NUMBERS = (1, 67, 4097)
"""Elements of the gradients that a codec is tried on."""


def rehearse_codec(text: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the codec raises."""
    say(Row(begins="import"))
    codec = load_codec(text)
    assert codec is not None
    random = torch.Generator().manual_seed(7)
    for numel in NUMBERS:
        say(Row(begins=f"{numel} numbers there and back"))
        gradient = torch.randn(numel, generator=random)
        codec.decode(codec.encode(gradient, 7), numel)


def rehearse_data_policy(text: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the policy raises."""
    say(Row(begins="import"))
    policy = load_choice(
        DATA_POLICIES,
        text,
        DataPolicy,  # type: ignore[type-abstract]
        "data_policy",
    )
    for count in (1, 3):
        say(Row(begins=f"samples for {count} workers"))
        members = tuple(WorkerId(number) for number in range(1, count + 1))
        asked = Lending(
            size=100, members=members, borrowers=members, wanted=10, unread=(Range(0, 100),)
        )
        settled(asked, policy.lend(asked), Supply())


def rehearse_optimizer(digits: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the optimizer raises."""
    model = decode(bytes.fromhex(digits), Model)
    say(Row(begins="import"))
    plugin = load(OPTIMIZERS, model.optimizer, Optimizer)  # type: ignore[type-abstract]
    for block in partition(model):
        parameter = model.parameters[block.parameter]
        say(Row(begins=f"steps on a parameter of {parameter.dtype}"))
        tensor = _stepped(TensorBlock(block, parameter, model, plugin))
        meta, payload = tensor.dump()
        _check_value(model, block, meta)
        say(Row(begins="a move to another server"))
        moved = TensorBlock(block, parameter, model, plugin)
        moved.load(decode(encode(meta), StateMeta), memoryview(payload))
        _check_value(model, block, _stepped(moved).dump()[0])


def _stepped(tensor: TensorBlock) -> TensorBlock:
    random = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        noise = torch.randn(tensor.block.numel, generator=random)
        received = noise.to(tensor.dtype).view(torch.uint8)
        tensor.step(tensor.gradient_from(received), {})
    return tensor


def _check_value(model: Model, block: Block, meta: StateMeta) -> None:
    parameter = model.parameters[block.parameter]
    dtype = "float32" if parameter.master else parameter.dtype
    nbytes = block.numel * parameter.kept_width
    for row in meta.tensors:
        if row.key == VALUE and (row.dtype != dtype or row.nbytes != nbytes):
            raise PluginError(
                f"a parameter of {dtype} with {nbytes} bytes became one of"
                f" {row.dtype} with {row.nbytes}",
                where=model.optimizer,
                field="dtype",
            )


def make_strategy(text: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the strategy raises. Only a worker can run it."""
    say(Row(begins="import"))
    load_strategy(text)


def make_placement(text: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the placement raises."""
    say(Row(begins="import"))
    load_choice(PLACEMENTS, text, Placement, "placement")  # type: ignore[type-abstract]


REHEARSALS = {
    OPTIMIZERS: rehearse_optimizer,
    CODECS: rehearse_codec,
    DATA_POLICIES: rehearse_data_policy,
    STRATEGIES: make_strategy,
    PLACEMENTS: make_placement,
}


def main(group: str, choice: str) -> None:
    with telling() as say:
        try:
            leave_compiler_unloaded()
            REHEARSALS[group](choice, say)
        except ElasticError as error:
            say(Row(broken=str(error)))
        except Exception as error:  # a plugin may raise anything
            say(Row(broken=f"{type(error).__name__}: {error}"))
        else:
            say(Row(passed=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
