"""What workers hold of a block whose values reach them as coded differences."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from elasticps.api.job_codec import JobCodec
from elasticps.errors import CodecError, PluginError
from elasticps.wire.coded_values import add, digest_of
from elasticps.wire.tensors import bytes_of

HELD = "held-by-workers"
"""Among the tensors that move with a block."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What is to be added, coded (nothing, where it is empty), and the digest of what it makes."""

    payload: memoryview
    makes: int


class CodedValue:
    """``held`` is flat, in the parameter's dtype, and the same at each replica and each worker.

    After a round what ``held`` lacks of the value is coded; decoded it is added to ``held`` here,
    and by whoever reads the block. What coding has lost is so a part of the next difference, with
    no residual kept apart (as EF21 does for gradients: Richtarik et al. 2021, section 3).
    """

    def __init__(self, value: torch.Tensor, dtype: torch.dtype, codec: JobCodec) -> None:
        self.held = value.detach().reshape(-1).to(dtype, copy=True)
        self._codec = codec
        self._digest = digest_of(bytes_of(self.held))
        self._before: int | None = None
        self._newest = memoryview(b"")

    @property
    def nbytes_held(self) -> int:
        return self.held.nbytes + self._newest.nbytes

    def restart(self, held: torch.Tensor) -> None:
        """Workers that have something else are to read all of ``held``."""
        self.held.copy_(held.reshape(-1))
        self._digest = digest_of(bytes_of(self.held))
        self._before, self._newest = None, memoryview(b"")

    def follow(self, value: torch.Tensor) -> None:
        """A round has changed the value. The same steps at each replica give the same bits.

        Raises PluginError.
        """
        wide = torch.promote_types(self.held.dtype, torch.float32)
        lacks = value.reshape(-1).to(wide).sub(self.held).to(torch.float32)
        payload = self._codec.encode(lacks, self._digest)
        try:
            difference = self._codec.decode(payload, lacks.numel())
        except CodecError as error:
            what = f"decode() of a value's difference failed: {error}"
            raise PluginError(what, where=f"codec {self._codec.text}") from error
        if not difference.sum().isfinite():  # which would stay in ``held`` for good
            self.restart(value)
            return
        add(self.held, difference)
        self._before, self._digest = self._digest, digest_of(bytes_of(self.held))
        self._newest = payload

    def difference_from(self, holds: int | None) -> Difference | None:
        """What a worker with the value of digest ``holds`` lacks; None: only all of it helps."""
        if holds is None:
            return None
        if holds == self._digest:
            return Difference(memoryview(b""), self._digest)
        return Difference(self._newest, self._digest) if holds == self._before else None
