"""What a worker that joins needs of one that trains: parameters and optimizer state, as bytes."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load, save

from elasticps.api.strategy import Worker

_SCALARS = "scalars"


def packed(worker: Worker) -> torch.Tensor:
    """Copies of the worker's parameters and its local optimizer's state, as a safetensors file."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, bool | int | float | None] = {}
    state = worker.local_optimizer.state
    for index, parameter in enumerate(worker.parameters.values()):
        tensors[f"value/{index}"] = parameter.detach()
        for key, item in state.get(parameter, {}).items():
            if torch.is_tensor(item):
                tensors[f"state/{index}/{key}"] = item.detach().contiguous()
            else:
                scalars[f"{index}/{key}"] = item
    text = json.dumps(scalars).encode()
    tensors[_SCALARS] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)


def unpack(worker: Worker, state: torch.Tensor) -> None:
    """Make the worker what the one was that packed ``state``."""
    tensors = load(state.numpy().tobytes())
    scalars = json.loads(tensors.pop(_SCALARS).numpy().tobytes())
    parameters = list(worker.parameters.values())
    worker.local_optimizer.state.clear()
    with torch.no_grad():
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            index, _, key = rest.partition("/")
            if kind == "value":
                parameters[int(index)].copy_(tensor)
            else:
                worker.local_optimizer.state[parameters[int(index)]][key] = tensor
    for name, item in scalars.items():
        index, _, key = name.partition("/")
        worker.local_optimizer.state[parameters[int(index)]][key] = item


class Undo:
    """A worker's parameters, gradients and optimizer state as they were, to go back to."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._gradients = [parameter.grad for parameter in worker.parameters.values()]
        self._state = packed(worker)

    def restore(self) -> None:
        unpack(self._worker, self._state)
        parameters = self._worker.parameters.values()
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient
