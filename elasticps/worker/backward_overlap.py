"""Blocks leave from hooks during backward (``run.optimizer(..., overlap_backward=True)``).

As DistributedDataParallel does it (Li et al. 2020, "PyTorch Distributed", section 3.2.3): a
parameter's gradient goes when it is accumulated, while those of the layers before are yet to be
computed. A round is applied with the votes, after the step: what has left early is in no value that
anybody reads before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import xxhash

from elasticps.core.blocks import Hyperparameters
from elasticps.errors import UsageError
from elasticps.wire.tensors import bytes_of
from elasticps.worker.stepping import Stepping

if TYPE_CHECKING:
    from elasticps.api.strategy import Tensors

DIGESTED_STEPS = 3
"""In these steps a change that torch's version counters do not see (``grad.data``) is found too."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A gradient as it was when it left."""

    gradient: torch.Tensor
    version: int
    digest: int | None


class BackwardOverlap:
    """On the script's thread. ``options`` and ``weight`` are those of the step to come."""

    def __init__(
        self,
        member: Stepping,
        parameters: Tensors,
        options: Callable[[], Sequence[Hyperparameters]],
        weight: Callable[[], float],
    ) -> None:
        self._member = member
        self._parameters = parameters
        self._options = options
        self._weight = weight
        self._sent: dict[str, _Sent] = {}
        self._began_with: tuple[object, ...] | None = None
        self._steps = 0
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda item, name=name: self._accumulated(name, item)
            )

    def _accumulated(self, name: str, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or self._member.turn is None:
            return
        if not self._sent:
            self._began_with = self._terms()
            if not self._member.begin_early(self._options(), self._weight()):
                return
        if name not in self._sent:  # a second backward is found by the check
            self._sent[name] = _Sent(gradient, _version(gradient), self._digest(gradient))
            self._member.push_early(name)

    def check(self) -> None:
        """At the step: raise UsageError where it would push other than what has left."""
        sent, self._sent = self._sent, {}
        if not sent:
            return
        if self._terms() != self._began_with:
            raise _changed("the batch's weight, the clipping bound or an option of the optimizer")
        for name, was in sent.items():
            gradient = self._parameters[name].grad
            same = gradient is was.gradient and _version(gradient) == was.version
            if not same or was.digest != self._digest(was.gradient):
                raise _changed(f"the gradient of {name}")
        self._steps += 1

    def _terms(self) -> tuple[object, ...]:
        return self._member.clip_bound, self._weight(), tuple(map(repr, self._options()))

    def _digest(self, gradient: torch.Tensor) -> int | None:
        if self._steps >= DIGESTED_STEPS:
            return None
        return xxhash.xxh3_64_intdigest(bytes_of(gradient.detach().contiguous()))


def _version(tensor: torch.Tensor) -> int:
    """Grows with each write that torch knows of."""
    return tensor._version  # noqa: SLF001 - there is no public name for it


def _changed(what: str) -> UsageError:
    return UsageError(
        f"{what} was changed after backward had sent the gradients",
        field="overlap_backward",
        limit="one backward a step, whose gradients stay as they are",
        hint="leave overlap_backward out; to clip, run.optimizer(..., clip_grad_norm=1.0)",
    )
