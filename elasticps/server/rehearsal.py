"""Does a job's optimizer step, and can its state move? ``python -m elasticps.server.rehearsal``.

A process of its own, because a plugin may hang or end it, and a shard server has other jobs'
blocks; the daemon starts it with the model in small (msgpack, as hexadecimal digits), and hears.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.api.trial import Row, telling
from elasticps.core.blocks import Block, Model, partition
from elasticps.errors import ElasticError, PluginError
from elasticps.server.main import warm_up
from elasticps.server.tensor_block import VALUE, TensorBlock
from elasticps.wire.messages import StateMeta, decode, encode

STEPS = 3


def rehearse(model: Model, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the optimizer raises."""
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
    for row in meta.tensors:
        if row.key == VALUE and (row.dtype != parameter.dtype or row.nbytes != block.nbytes):
            raise PluginError(
                f"a parameter of {parameter.dtype} with {block.nbytes} bytes became one of"
                f" {row.dtype} with {row.nbytes}",
                where=model.optimizer,
                field="dtype",
            )


def main(digits: str) -> None:
    with telling() as say:
        try:
            warm_up()
            rehearse(decode(bytes.fromhex(digits), Model), say)
        except ElasticError as error:
            say(Row(broken=str(error)))
        except Exception as error:  # an optimizer may raise anything
            say(Row(broken=f"{type(error).__name__}: {error}"))
        else:
            say(Row(passed=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
