"""A worker's read of a block whose value comes as a coded difference from what it has."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from elasticps.api.job_codec import JobCodec
from elasticps.wire.coded_values import add, digest_of
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import PullMeta, ValueMeta, decode, encode


@dataclass(frozen=True, slots=True)
class CodedPull:
    """``value`` is the worker's memory for the block, ``dtype`` the parameter's."""

    codec: JobCodec
    proof: PullMeta
    value: memoryview
    dtype: torch.dtype

    def meta(self) -> bytes:
        """What to ask with now."""
        return encode(msgspec.structs.replace(self.proof, holds=digest_of(self.value)))

    def take(self, reply: Reply) -> bool:
        """Make the value what the answer says; False where that has failed: read it whole.

        Raises CodecError for what is no coded difference.
        """
        makes, payload = decode(reply.meta, ValueMeta).makes, reply.payload
        if makes is None:
            if payload is None or len(payload) != len(self.value):
                return False
            self.value[:] = payload
            return True
        if payload is not None:
            flat = torch.frombuffer(self.value, dtype=self.dtype)
            add(flat, self.codec.decode(payload, flat.numel()))
        return digest_of(self.value) == makes
