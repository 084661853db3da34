"""The contract of a gradient codec (entry-point group ``elasticps.codecs``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch

from elasticps.errors import CodecError

Coded = bytes | bytearray | memoryview
"""A coded gradient: memory that nothing else writes to."""
FLOAT_BYTES = 4


class Codec(ABC):
    """Codes one block's gradient into fewer bytes on its worker, and back on the block's server.

    The entry point names a class that is made with the options of ``--codec NAME:KEY=VALUE``, on
    both sides alike, so those are all its state: a call must depend on its arguments alone, to the
    bit, for a push that is sent again must be the same bytes. Bytes are little-endian.
    """

    api_version: ClassVar[int] = 1

    codes_values: bool = False
    """Are the differences from round to round of the values that workers read coded as well? The
    server encodes them then, and the worker decodes them (decision 22)."""

    @abstractmethod
    def max_nbytes(self, numel: int) -> int:
        """The most bytes that ``numel`` numbers are coded in; a longer payload is not received."""

    @abstractmethod
    def encode(self, gradient: torch.Tensor, seed: int) -> Coded:
        """The bytes of ``gradient``, a flat, contiguous float32 CPU tensor of 1 or more elements.

        It may not be written to. ``seed``, of 64 bits, differs from push to push and is the only
        source of randomness. At least one byte.
        """

    @abstractmethod
    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        """The flat float32 tensor of ``numel`` elements in ``payload``, whoever sent that.

        It may share the payload's memory. Raises CodecError for what ``encode`` cannot have made,
        before it allocates more than the block has.
        """


class Reducer(Codec):
    """A codec that keeps fewer numbers, which a second one can code: ``top-k+int8``.

    How many numbers it keeps of a block, and in how many bytes it says which, depends on the
    block's size alone. By itself it sends them as float32.
    """

    @abstractmethod
    def head_nbytes(self, numel: int) -> int:
        """Bytes of the head, a multiple of 4 so that the numbers behind it are aligned."""

    @abstractmethod
    def values_in(self, numel: int) -> int:
        """How many numbers are kept, 1 or more."""

    @abstractmethod
    def reduce(self, gradient: torch.Tensor, seed: int) -> tuple[Coded, torch.Tensor]:
        """The head and the numbers kept (flat float32); see ``Codec.encode``."""

    @abstractmethod
    def restore(self, head: memoryview, values: torch.Tensor, numel: int) -> torch.Tensor:
        """The gradient out of a head and numbers of the right lengths; see ``Codec.decode``."""

    def max_nbytes(self, numel: int) -> int:
        return self.head_nbytes(numel) + FLOAT_BYTES * self.values_in(numel)

    def encode(self, gradient: torch.Tensor, seed: int) -> Coded:
        head, values = self.reduce(gradient, seed)
        return b"".join((head, values.numpy().tobytes()))

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        check_nbytes(payload, self.max_nbytes(numel))
        at = self.head_nbytes(numel)
        return self.restore(payload[:at], tensor_from(payload[at:], torch.float32), numel)


def check_nbytes(payload: memoryview, nbytes: int) -> None:
    """Raise CodecError unless ``payload`` has exactly ``nbytes`` bytes."""
    if len(payload) != nbytes:
        raise CodecError(
            f"{len(payload)} coded bytes", field="payload_length", limit=f"exactly {nbytes}"
        )


def tensor_from(payload: Coded, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as a flat tensor, in place where they may be written to, else copied."""
    array = np.frombuffer(payload, np.uint8)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).view(dtype)


def bytes_from(tensor: torch.Tensor) -> memoryview:
    """A contiguous tensor's memory as flat bytes."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
