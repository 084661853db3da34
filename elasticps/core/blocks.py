"""How a model's parameters are cut into blocks, the unit of placement, movement and fencing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from elasticps.core.ids import BlockId
from elasticps.errors import UsageError

DEFAULT_BLOCK_BYTES = 4 * 1024 * 1024
MIN_BLOCK_BYTES = 4 * 1024
MAX_BLOCK_BYTES = 128 * 1024 * 1024
"""A block moves with its optimizer's state and a gradient in one frame, which has a limit too."""
VECTOR_ELEMENTS = 64
LEDGER_BYTES = 4096
"""What the ledger counts for in placement: about its size at a few dozen workers."""

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}

HALF = frozenset({"float16", "bfloat16"})
"""What a float32 master copy may be kept of."""

MOST_UNTRAINED = 500
"""Of the tensors that a job does not serve so many are told one by one."""

Hyperparameters = dict[str, Any]
"""One param group's options, as ``torch.optim`` names them; numbers, booleans, None, or tuples."""


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter of the model: its name, shape, dtype (torch's name) and param group.

    ``at_once``: a push is applied when it comes, also in a job that goes by whole rounds.
    ``master``: the servers keep it in float32, step on that, and give it out rounded to its dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int = 0
    at_once: bool = False
    master: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def kept_width(self) -> int:
        """Bytes of an element of the value that the servers keep."""
        return DTYPE_BYTES["float32" if self.master else self.dtype]


class Untrained(msgspec.Struct, frozen=True, array_like=True):
    """A tensor that a job does not serve: its ``kind`` is shape and dtype, its ``print`` is that of
    all up to it."""

    name: str
    kind: str
    print: str


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """All that the servers must know of a job's model; written once, equal for every worker.

    ``options`` are the optimizer's constructor arguments, ``groups`` each param group in full.
    ``untrained`` is a fingerprint of what the job does not serve: frozen parameters and buffers,
    which each worker makes for itself and which must begin equal. ``untrained_rows`` are the first
    ``MOST_UNTRAINED`` of these, to name what differs; they count for nothing else.
    """

    parameters: tuple[Parameter, ...]
    optimizer: str
    options: Hyperparameters = {}
    groups: tuple[Hyperparameters, ...]
    elementwise: bool = True
    block_bytes: int = DEFAULT_BLOCK_BYTES
    untrained: str = ""
    untrained_rows: tuple[Untrained, ...] = ()

    def alike(self, other: Model) -> bool:
        """Is it the same job's model, as far as its workers have to agree?"""
        return _without_rows(self) == _without_rows(other)


def _without_rows(model: Model) -> Model:
    return msgspec.structs.replace(model, untrained_rows=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Elements ``[start, stop)`` of one parameter, flattened."""

    id: BlockId
    parameter: int
    start: int
    stop: int
    nbytes: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


def check_model(model: Model) -> None:
    """Raise UsageError, naming the field, when ``model`` cannot be served."""
    if not model.parameters:
        raise UsageError("the model has no parameter that requires a gradient", field="parameters")
    if not MIN_BLOCK_BYTES <= model.block_bytes <= MAX_BLOCK_BYTES:
        raise UsageError(
            f"a block of {model.block_bytes} bytes",
            field="block_bytes",
            limit=f"{MIN_BLOCK_BYTES} to {MAX_BLOCK_BYTES}",
        )
    names = set()
    for parameter in model.parameters:
        if parameter.dtype not in DTYPE_BYTES:
            raise UsageError(
                f"parameter {parameter.name} has dtype {parameter.dtype}",
                field="dtype",
                limit=", ".join(DTYPE_BYTES),
            )
        if parameter.master and parameter.dtype not in HALF:
            raise UsageError(
                f"parameter {parameter.name} of {parameter.dtype} has a master copy",
                field="master",
                limit=", ".join(sorted(HALF)),
            )
        if min(parameter.shape, default=1) < 1:
            raise UsageError(
                f"parameter {parameter.name} has no elements",
                field="shape",
                hint="requires_grad_(False) leaves it out",
            )
        if not 0 <= parameter.group < len(model.groups):
            raise UsageError(f"parameter {parameter.name} names no param group", field="group")
        if parameter.name in names:
            raise UsageError(f"two parameters are named {parameter.name}", field="name")
        names.add(parameter.name)
        _check_whole_block(model, parameter)


def _check_whole_block(model: Model, parameter: Parameter) -> None:
    nbytes = parameter.numel * parameter.kept_width
    if not model.elementwise and nbytes > MAX_BLOCK_BYTES:
        raise UsageError(
            f"{model.optimizer} needs whole parameters and {parameter.name} has {nbytes} bytes",
            field="shape",
            limit=str(MAX_BLOCK_BYTES),
        )


def partition(model: Model) -> tuple[Block, ...]:
    """Cut every parameter into blocks of at most ``model.block_bytes``; ids count from 1.

    A block's bytes are those of the values that workers read; a master copy has more, and fits.

    An optimizer that is not element-wise gets one block a parameter, whatever its size.
    """
    blocks: list[Block] = []
    for index, parameter in enumerate(model.parameters):
        width = DTYPE_BYTES[parameter.dtype]
        # Whole vectors of any processor: torch rounds a vector and its scalar tail differently in
        # half precision, and a cut must not change a result.
        whole = model.block_bytes // parameter.kept_width // VECTOR_ELEMENTS * VECTOR_ELEMENTS
        span = whole if model.elementwise else parameter.numel
        for start in range(0, parameter.numel, span):
            stop = min(start + span, parameter.numel)
            blocks.append(
                Block(
                    id=BlockId(len(blocks) + 1),
                    parameter=index,
                    start=start,
                    stop=stop,
                    nbytes=(stop - start) * width,
                )
            )
    return tuple(blocks)
