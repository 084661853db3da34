"""A job's optimizer, codec and strategy tried as a shard server would run them: see ``rehearsal``.

Apart from it because torch takes a second or more to load, which a data policy need not wait for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from elasticps.api.job_codec import load_codec
from elasticps.api.lazy_compiler import leave_compiler_unloaded
from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import CODECS, OPTIMIZERS, STRATEGIES, load
from elasticps.api.strategy_choice import load_strategy
from elasticps.api.trial import Row
from elasticps.checkpoint.snapshot import VALUE
from elasticps.core.blocks import Block, Model, partition
from elasticps.errors import PluginError
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


def rehearse_optimizer(digits: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the optimizer raises."""
    model = decode(bytes.fromhex(digits), Model)
    say(Row(begins="import"))
    plugin = load(OPTIMIZERS, model.optimizer, Optimizer)  # type: ignore[type-abstract]
    for block in partition(model):
        parameter = model.parameters[block.parameter]
        say(Row(begins=f"trial steps on a parameter of {parameter.dtype}"))
        tensor = _stepped(TensorBlock(block, parameter, model, plugin))
        say(Row(begins="a trial copy of its value and state, as each replica has one"))
        meta, payload = tensor.dump()
        _check_value(model, block, meta)
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


_REHEARSALS = {
    OPTIMIZERS: rehearse_optimizer,
    CODECS: rehearse_codec,
    STRATEGIES: make_strategy,
}


def rehearse(group: str, choice: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the plugin raises."""
    leave_compiler_unloaded()
    _REHEARSALS[group](choice, say)
