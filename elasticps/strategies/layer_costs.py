"""What a pipeline's layers cost: shapes and bytes on the meta device, seconds on real numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from elasticps.api.pipeline import Pipeline
from elasticps.errors import UsageError

TIMED = 3
"""How often a layer is timed. The fastest counts: what else the machine does is not the layer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A microbatch's way: ``borders[i]`` goes into layer i, on the meta device; the last comes out.

    ``kept[i]`` are the bytes that layer i keeps of it for the backward pass.
    """

    borders: Sequence[torch.Tensor]
    kept: Sequence[int]


def traced(layers: nn.Sequential, batch: torch.Tensor) -> Trace:
    """Follow a meta tensor, a microbatch, through all layers. No parameter's value is needed.

    Raises UsageError for a layer whose shapes depend on values, or that gives no single tensor.
    """
    borders, kept = [batch], []
    for name, layer in layers.named_children():
        tensors = {key: _meta(item) for key, item in _tensors(layer).items()}
        given = borders[-1].detach().requires_grad_(borders[-1].is_floating_point())
        saved = _Saved(tensors.values())
        try:
            with torch.enable_grad(), saved_tensors_hooks(saved.pack, lambda tensor: tensor):
                made = functional_call(layer, tensors, (given,))
        except (RuntimeError, NotImplementedError) as error:
            raise UsageError(
                f"layer {name} has no shapes on the meta device: {error}", field="layers"
            ) from error
        if not isinstance(made, torch.Tensor) or made.shape[:1] != batch.shape[:1]:
            raise UsageError(
                f"layer {name} gives no tensor with a row for each sample",
                field="layers",
                hint="put what passes more than one tensor on into one layer",
            )
        borders.append(made.detach())
        kept.append(saved.nbytes)
    return Trace(borders=borders, kept=kept)


def timed(pipeline: Pipeline, batch: torch.Tensor) -> list[float]:
    """The seconds that each layer's forward takes for ``batch``, a microbatch.

    Layers that are not held are drawn for the moment: one at a time is in memory beside those
    that are. Buffers and the script's random numbers stay as they are.
    """
    seconds = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for index, layer in enumerate(pipeline.layers):
            was_held = pipeline.is_held(index)
            if not was_held:
                pipeline.draw(index)
            tensors = {key: item.clone() for key, item in layer.named_buffers()}
            best = float("inf")
            for _ in range(TIMED):
                began = time.perf_counter()
                made = functional_call(layer, tensors, (batch,))
                best = min(best, time.perf_counter() - began)
            if not was_held:
                pipeline.drop([index])
            seconds.append(best)
            batch = made
    return seconds


class _Saved:
    """Counts what autograd keeps, each storage once, without the layer's own tensors."""

    def __init__(self, own: Iterable[torch.Tensor]) -> None:
        self._own = {id(each): each for each in (item.untyped_storage() for item in own)}
        self._kept: dict[int, torch.UntypedStorage] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._own:
            self._kept[id(storage)] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())


def _tensors(layer: nn.Module) -> Mapping[str, torch.Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _meta(tensor: torch.Tensor) -> Any:
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return made.requires_grad_(tensor.requires_grad)
