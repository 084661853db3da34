"""A job's model in small: what its optimizer is tried on before a shard server runs it."""

from __future__ import annotations

import msgspec

from elasticps.core.blocks import Model, Parameter

FLAT_LENGTH = 67
"""Some vector registers and a rest."""
LONGEST_SIDE = 5


def in_small(model: Model) -> Model:
    """The same optimizer, options and param groups, with one small parameter of each kind."""
    kinds = {(item.group, item.dtype, _shape(model, item)) for item in model.parameters}
    parameters = tuple(
        Parameter(name=f"p{index}", shape=shape, dtype=dtype, group=group)
        for index, (group, dtype, shape) in enumerate(sorted(kinds))
    )
    return msgspec.structs.replace(model, parameters=parameters, untrained="", untrained_rows=())


def _shape(model: Model, parameter: Parameter) -> tuple[int, ...]:
    if model.elementwise and parameter.shape:
        return (min(parameter.numel, FLAT_LENGTH),)
    return tuple(min(side, LONGEST_SIDE) for side in parameter.shape)
