"""A large block's step piece by piece: each is read, stepped and given out while it is in cache.

An optimizer of several operations would carry a block of 4 MiB from and to memory in each. The
pieces are stepped by the block's own optimizer as if each were a parameter, by all of the server's
threads (``ComputeThreads``); their states are views of the block's. Element-wise kernels give an
element the same bits wherever a piece begins, as long as it begins at a multiple of what they take
at a time: so the number of threads makes no difference either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elasticps.server.bare_step import bare_step
from elasticps.server.compute import ComputeThreads, Work
from elasticps.server.gradient_mean import Mean
from elasticps.wire.tensors import bytes_of, copy_bytes

PIECE_NUMEL = 1 << 18
"""1 MiB of float32: some of them are about a core's cache, and what Python takes for each is little
beside its arithmetic."""

PIECEWISE: frozenset[type[torch.optim.Optimizer]] = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Adadelta,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Rprop,
        torch.optim.ASGD,
    }
)
"""Those that do to an element what that element's numbers and a count of steps say; a test holds
each against a step of the whole."""


LEAST_BYTES = 64 * 1024
"""Smaller ones are stepped together (``joint_step``), or are in cache as they are."""


def is_piecewise(optimizer: torch.optim.Optimizer, value: torch.Tensor) -> bool:
    """May the step of a flat ``value`` be made so?"""
    options = optimizer.param_groups[0]
    return (
        type(optimizer) in PIECEWISE
        and "step" not in vars(optimizer)  # which somebody has put there would step this one
        and value.dim() == 1
        and value.nbytes > LEAST_BYTES
        and not (options.get("capturable") or options.get("differentiable"))
    )


def alike(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Another with all that this one has, whose group may get other parameters: a step takes them
    from there, and other threads make theirs meanwhile."""
    kind = type(optimizer)
    made = kind.__new__(kind)
    vars(made).update(vars(optimizer))
    return made


class PiecewiseStep:
    """The pieces of one value, and of its optimizer's state as it was when this was made.

    It is of no use any more once the value has other memory or the optimizer another state.
    """

    def __init__(
        self, value: torch.Tensor, optimizer: torch.optim.Optimizer, threads: ComputeThreads
    ) -> None:
        self._value = value
        self._optimizer = optimizer
        self._threads = threads
        self._pieces: list[tuple[torch.Tensor, slice]] = [
            (piece, slice(number * PIECE_NUMEL, number * PIECE_NUMEL + piece.numel()))
            for number, piece in enumerate(value.split(PIECE_NUMEL))  # type: ignore[no-untyped-call]
        ]
        whole: dict[str, Any] = optimizer.state.get(value, {})
        if whole:
            for piece, where in self._pieces:
                optimizer.state[piece] = {
                    key: _part_of(item, value, where) for key, item in whole.items()
                }

    def share(
        self, gradient: torch.Tensor | Mean, into: Sequence[torch.Tensor]
    ) -> tuple[int, Work]:
        """The pieces of the next step, for threads to share out; then call ``gather``.

        ``gradient`` is only read; each of ``into`` gets the bytes of a piece of the value as it is
        made.
        Where a piece raises what the optimizer raises, value and state have no meaning any more.
        """
        group, width = self._optimizer.param_groups[0], self._value.element_size()
        value, targets = bytes_of(self._value), [bytes_of(target) for target in into]

        def step(thread: int, number: int) -> None:
            piece, where = self._pieces[number]
            own = alike(self._optimizer)
            own.param_groups = [{**group, "params": [piece]}]
            if isinstance(gradient, Mean):
                room = self._threads.room(thread, piece.numel(), gradient.dtype)
                piece.grad = gradient.piece(where, room)
            else:
                piece.grad = gradient[where]
            bare_step(own)
            piece.grad = None
            stretch = slice(where.start * width, where.stop * width)
            for target in targets:
                copy_bytes(target[stretch], value[stretch])

        return len(self._pieces), step

    @property
    def is_one_pass(self) -> bool:
        """Is the step one operation over the value, which is in memory as fast as in cache?"""
        group = self._optimizer.param_groups[0]
        return type(self._optimizer) is torch.optim.SGD and not (
            group["momentum"] or group["weight_decay"] or group["maximize"]
        )

    def whole(self, gradient: torch.Tensor) -> Work:
        """The next step as one piece."""
        group, value = self._optimizer.param_groups[0], self._value

        def step(_: int, __: int) -> None:
            own = self._stand_in()
            own.param_groups = [{**group, "params": [value]}]
            value.grad = gradient
            try:
                bare_step(own)
            finally:
                value.grad = None

        return step

    def _stand_in(self) -> torch.optim.Optimizer:
        """Another optimizer with all that the block's has, whose group may get other parameters:
        a step takes them from there, and other threads make theirs meanwhile."""
        kind = type(self._optimizer)
        made = kind.__new__(kind)
        vars(made).update(vars(self._optimizer))
        return made

    def gather(self) -> None:
        """What the optimizer has put into other memory goes back to where the block's state is."""
        states = self._optimizer.state
        a_piece, _ = self._pieces[0]
        first: dict[str, Any] = states.get(a_piece, {})
        if not first:
            return
        whole = states[self._value]
        for key, item in first.items():
            if not _is_by_element(item, a_piece):
                whole[key] = item
                continue
            if key not in whole:
                whole[key] = torch.empty(self._value.shape, dtype=item.dtype)
            for piece, where in self._pieces:
                part, place = states[piece][key], whole[key][where]
                if part.data_ptr() != place.data_ptr():
                    states[piece][key] = place.copy_(part)

    def close(self) -> None:
        """Let go of the pieces' states; the block's own has all that is in them."""
        for piece, _ in self._pieces:
            self._optimizer.state.pop(piece, None)


def _is_by_element(item: object, like: torch.Tensor) -> bool:
    return isinstance(item, torch.Tensor) and item.shape == like.shape


def _part_of(item: Any, value: torch.Tensor, where: slice) -> Any:
    if _is_by_element(item, value):
        return item[where]
    return item.clone() if isinstance(item, torch.Tensor) else item
