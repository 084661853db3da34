"""A model as a row of layers, so that a strategy may spread it over workers (``run.pipeline``).

Built under ``torch.device("meta")`` it is never whole in any memory. A trained parameter whose
layer is not *held* here keeps its name, shape, dtype and identity, but all of its elements are one
NaN in memory: it takes no room, and whoever computes with it notices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn

from elasticps.errors import UsageError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SEED_STRIDE = 1_000_003
MAX_SEED = 1 << 63
_DRAWING = threading.Lock()
"""Torch's modules draw from the one generator of the process."""


class Pipeline:
    """``layers`` run one after the other on batches whose first dimension is the samples'.

    ``loss_fn(outputs, targets)`` is a mean over the samples, as torch's losses are by default.
    ``seed`` draws the initial values of what was built on the meta device, for each layer by
    itself: they depend on nothing else. ``was_whole``: it was built outside of that.
    """

    def __init__(self, layers: nn.Sequential, loss_fn: Loss, *, seed: int = 0) -> None:
        if not isinstance(layers, nn.Sequential) or not len(layers):
            raise UsageError("a pipeline is an nn.Sequential of some layers", field="layers")
        self.layers = layers
        self.loss_fn = loss_fn
        self.was_whole = not any(item.is_meta for item in layers.parameters())
        self._seed = seed
        self._compute: Compute | None = None
        self._names = _names_by_layer(layers)
        self._held = set(range(len(layers)))
        self._leave_meta()

    # -- what a script does ---------------------------------------------------------------------

    def forward_backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, a number; its gradients are added to ``.grad`` where layers are.

        To be called once before each ``optimizer.step()``, in every worker that has a batch.
        Raises UsageError before ``run.optimizer``.
        """
        if self._compute is None:
            raise UsageError("call run.optimizer(pipeline, ...) first", field="forward_backward")
        if not len(inputs) or len(inputs) != len(targets):
            raise UsageError(
                f"{len(inputs)} inputs and {len(targets)} targets",
                field="targets",
                limit="one for each sample, at least one",
            )
        return self._compute(inputs, targets)

    # -- what runs and strategies do ------------------------------------------------------------

    def computed_by(self, compute: Compute) -> None:
        """From now on ``compute`` does what ``forward_backward`` is to do."""
        self._compute = compute

    def compute(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Forward and backward of the whole model, here."""
        loss = self.loss_fn(self.layers(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def names(self, layer: int) -> Sequence[str]:
        """The trained parameters of one layer."""
        return self._names[layer]

    def trained(self, layer: int) -> list[nn.Parameter]:
        return [item for item in self.layers[layer].parameters() if item.requires_grad]

    def nbytes(self, layer: int) -> int:
        return sum(item.nbytes for item in self.trained(layer))

    def is_held(self, layer: int) -> bool:
        return layer in self._held

    def hold(self, layers: Iterable[int]) -> None:
        """Have room for these layers; the values of those that had none are yet to be read."""
        for layer in set(layers) - self._held:
            for item in self.trained(layer):
                item.data = torch.empty(item.shape, dtype=item.dtype)
            self._held.add(layer)

    def drop(self, layers: Iterable[int]) -> None:
        """Give the room of these layers back: values and gradients."""
        for layer in self._held.intersection(layers):
            for item in self.trained(layer):
                item.data = _absent(item)
                item.grad = None
            self._held.remove(layer)

    def draw(self, layer: int) -> None:
        """Hold a layer with its initial values. Raises UsageError where those cannot be drawn."""
        self.hold([layer])
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.manual_seed((self._seed * SEED_STRIDE + layer) % MAX_SEED)
            for name, module in reversed(list(self.layers[layer].named_modules())):
                _reset(f"{layer}.{name}".rstrip("."), module)

    def first_values(self) -> Iterator[Sequence[nn.Parameter]]:
        """Each layer's parameters with their first values: what is not held, for that long."""
        for layer in range(len(self.layers)):
            if self.is_held(layer):
                yield self.trained(layer)
            else:
                self.draw(layer)
                yield self.trained(layer)
                self.drop([layer])

    def _leave_meta(self) -> None:
        """Parameters become absent ones; buffers and frozen parameters are each worker's own."""
        for index, layer in enumerate(self.layers):
            draws, was_meta = False, False
            for module in layer.modules():
                for name, item in module.named_parameters(recurse=False):
                    if item.is_meta:
                        was_meta = True
                        draws |= not item.requires_grad
                        here = nn.Parameter(_absent(item), requires_grad=item.requires_grad)
                        module.register_parameter(name, here)
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.is_meta:
                        draws = True
                        setattr(module, name, torch.empty_like(buffer, device="cpu"))
            if was_meta:
                self._held.remove(index)
            if draws:
                for item in layer.parameters():
                    item.data = torch.empty(item.shape, dtype=item.dtype)
                self.draw(index)
                self.drop([index])


def has_room(tensor: torch.Tensor) -> bool:
    """Has it memory for a value of its own? A single number always has."""
    return tensor.untyped_storage().nbytes() >= tensor.nbytes


def is_absent(tensor: torch.Tensor) -> bool:
    """Does it stand for a trained parameter whose layer is not held here?"""
    return not has_room(tensor) and bool(tensor[(0,) * tensor.dim()].isnan())


def _absent(like: torch.Tensor) -> torch.Tensor:
    dtype = like.dtype
    number = float("nan") if dtype.is_floating_point else 0
    if like.numel() == 1:
        return torch.full(like.shape, number, dtype=dtype)
    return torch.full((), number, dtype=dtype).expand(like.shape)


def _names_by_layer(layers: nn.Sequential) -> list[list[str]]:
    """Raises UsageError for a parameter that two layers share: they could be apart."""
    names: list[list[str]] = []
    owners: dict[int, str] = {}
    for child, layer in layers.named_children():
        own = {id(item): name for name, item in layer.named_parameters() if item.requires_grad}
        for item, name in own.items():
            if item in owners:
                raise UsageError(
                    f"{owners[item]} and {child}.{name} are one parameter",
                    field="layers",
                    hint="put what shares parameters into one layer",
                )
            owners[item] = f"{child}.{name}"
        names.append([f"{child}.{name}" for name in own.values()])
    return names


def _reset(name: str, module: nn.Module) -> None:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    # Attention's, torch's only one of this name, is called from its constructor alone.
    reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    if own and reset is None:
        raise UsageError(
            f"layer {name}, a {type(module).__name__}, has no reset_parameters() to draw values",
            field="layers",
            hint="give it one, or build it outside of the meta device",
        )
    if own and reset is not None:
        reset()
