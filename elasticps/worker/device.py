"""Parameters on a GPU: what the job reads and pushes are their copies in the host's pinned memory.

A step's gradients come to the host on a stream beside the one that computes, and the new values go
back the same way: one wait for all of them together, in each direction. Parameters on the CPU have
no copy. Nothing here touches ``torch.cuda`` before there is a tensor on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch


class Streams(Protocol):
    """One device's copies to the host and back."""

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Room on the host that the device can copy to by itself."""

    def copying(self) -> Any:
        """A context: what is copied in it begins after what is computed, and is done at its end."""

    def copy(self, into: torch.Tensor, tensor: torch.Tensor) -> None:
        """Copy within ``copying``, without waiting."""


class CudaStreams:
    """Those of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    @contextmanager
    def copying(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def copy(self, into: torch.Tensor, tensor: torch.Tensor) -> None:
        into.copy_(tensor, non_blocking=True)


def is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


class Staged:
    """``host``: for each parameter its copy, or itself where it is on the CPU."""

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        *,
        streams: Callable[[torch.device], Streams] = CudaStreams,
        is_staged: Callable[[torch.Tensor], bool] = is_on_gpu,
    ) -> None:
        devices = {item.device for item in parameters if is_staged(item)}
        self._streams = {device: streams(device) for device in devices}
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}
        self.host: list[torch.Tensor] = []
        for item in parameters:
            if is_staged(item):
                copy = self._streams[item.device].host_like(item)
                self._pairs.append((item, copy))
                self.host.append(copy)
            else:
                self.host.append(item)
        self._device_of = {copy: item for item, copy in self._pairs}
        self._host_of = dict(self._pairs)
        self.values_to_host()

    @property
    def is_needed(self) -> bool:
        """Is any parameter on a device?"""
        return bool(self._pairs)

    def gradients_to_host(self) -> None:
        """Give every copy the gradient that its parameter has by now, or none."""
        with self._copying():
            for item, copy in self._pairs:
                if item.grad is None:
                    copy.grad = None
                    continue
                if copy not in self._gradients:
                    self._gradients[copy] = self._streams[item.device].host_like(item)
                copy.grad = self._gradients[copy]
                self._streams[item.device].copy(copy.grad, item.grad.detach())

    def values_to_host(self) -> None:
        with self._copying():
            for item, copy in self._pairs:
                self._streams[item.device].copy(copy, item.detach())

    def values_to_device(self) -> None:
        with torch.no_grad(), self._copying():
            for item, copy in self._pairs:
                self._streams[item.device].copy(item, copy)

    def of_device(self, state: Mapping[torch.Tensor, Any]) -> dict[torch.Tensor, Any]:
        """What is by the host's tensors, by the parameters."""
        return {self._device_of.get(item, item): entry for item, entry in state.items()}

    def of_host(self, state: Mapping[torch.Tensor, Any]) -> dict[torch.Tensor, Any]:
        """What is by the parameters, by the host's tensors; its own tensors are on the host too."""
        return {
            self._host_of.get(item, item): {
                key: value.cpu() if torch.is_tensor(value) else value
                for key, value in entry.items()
            }
            for item, entry in state.items()
        }

    @contextmanager
    def _copying(self) -> Iterator[None]:
        with ExitStack() as stack:
            for streams in self._streams.values():
                stack.enter_context(streams.copying())
            yield
