"""A job's codec: the plugins that its choice names, stacked, and held to their contract."""

from __future__ import annotations

import torch

from elasticps.api.choice import load_choice
from elasticps.api.codec import Codec, Coded, Reducer
from elasticps.api.codec_choice import parse_codec
from elasticps.api.plugins import CODECS
from elasticps.errors import CodecError, PluginError, UsageError


class Stacked(Codec):
    """A second codec codes the numbers that a first one keeps."""

    def __init__(self, first: Reducer, second: Codec) -> None:
        self._first = first
        self._second = second

    def max_nbytes(self, numel: int) -> int:
        values = self._first.values_in(numel)
        return self._first.head_nbytes(numel) + self._second.max_nbytes(values)

    def encode(self, gradient: torch.Tensor, seed: int) -> Coded:
        head, values = self._first.reduce(gradient, seed)
        return b"".join((head, self._second.encode(values, seed)))

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        at = self._first.head_nbytes(numel)
        if len(payload) < at:
            raise CodecError(
                f"{len(payload)} coded bytes", field="payload_length", limit=f"at least {at}"
            )
        values = self._second.decode(payload[at:], self._first.values_in(numel))
        return self._first.restore(payload[:at], values, numel)


class JobCodec:
    """What worker and server call: any fault of a plugin is an error that names the codec."""

    def __init__(self, text: str, codec: Codec, *, error_feedback: bool = False) -> None:
        self.text = text
        self.error_feedback = error_feedback
        self.codes_values = bool(codec.codes_values)
        self._codec = codec

    def max_nbytes(self, numel: int) -> int:
        """Raises PluginError."""
        try:
            return int(self._codec.max_nbytes(numel))
        except Exception as error:  # a plugin may raise anything; its job alone ends
            raise self._broken("max_nbytes", error) from error

    def encode(self, gradient: torch.Tensor, seed: int) -> memoryview:
        """The coded bytes of a flat float32 tensor. Raises PluginError."""
        try:
            coded = memoryview(self._codec.encode(gradient, seed)).cast("B")
        except Exception as error:  # as above
            raise self._broken("encode", error) from error
        most = self.max_nbytes(gradient.numel())
        if not 0 < len(coded) <= most:
            raise PluginError(
                f"coded {gradient.numel()} numbers in {len(coded)} bytes",
                where=f"codec {self.text}",
                field="max_nbytes",
                limit=f"1 to {most}",
            )
        return coded

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        """The flat float32 tensor of ``numel`` elements. Raises CodecError, naming the field."""
        try:
            gradient = self._codec.decode(payload, numel)
        except CodecError:
            raise
        except Exception as error:  # as above, and the payload may be anybody's
            reason = f"codec {self.text}: {type(error).__name__}: {error}"
            raise CodecError(reason, field="payload") from error
        fits = isinstance(gradient, torch.Tensor) and gradient.shape == (numel,)
        if not fits or gradient.dtype != torch.float32 or not gradient.is_contiguous():
            raise CodecError(
                f"codec {self.text} decoded no gradient",
                field="payload",
                limit=f"a flat float32 tensor of {numel} elements",
            )
        return gradient

    def _broken(self, call: str, error: Exception) -> PluginError:
        reason = f"{call}() failed: {type(error).__name__}: {error}"
        return PluginError(reason, where=f"codec {self.text}")


def load_codec(text: str) -> JobCodec | None:
    """The codec that ``text`` chooses; None where gradients go as they are, in their own dtype.

    Raises UsageError for a choice that cannot be, PluginError for a plugin.
    """
    choice = parse_codec(text)
    if not choice.parts:
        return None
    codecs: list[Codec] = [
        load_choice(CODECS, part, Codec, "codec")  # type: ignore[type-abstract]
        for part in choice.parts
    ]
    codec = codecs.pop()
    while codecs:
        first = codecs.pop()
        if not isinstance(first, Reducer):
            raise UsageError(
                f"{choice.parts[len(codecs)]} keeps every number: nothing can follow it",
                field="codec",
                limit="a codec that keeps fewer, as top-k, random-k and power-sgd do",
            )
        codec = Stacked(first, codec)
    return JobCodec(text, codec, error_feedback=choice.error_feedback)
