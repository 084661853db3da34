"""What every codec plugin must do with blocks of any size, and with bytes of anybody's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from elasticps.api.codec import Codec, Reducer
from elasticps.api.job_codec import JobCodec
from elasticps.errors import CodecError
from elasticps.testing.kit import Case, Subject, require

SIZES = (1, 2, 3, 7, 64, 255, 256, 257, 1009, 4097, 65_537)
"""Around powers of two, and primes."""
SEEDS = (0, 7, 2**64 - 1)
HOSTILE = 200


def _codec(subject: Subject) -> JobCodec:
    """The plugin as worker and server call it, who hold it to the shapes and lengths it says."""
    return JobCodec(subject.text, subject.load())


def _gradients(numel: int) -> Iterator[torch.Tensor]:
    random = torch.Generator().manual_seed(numel)
    yield torch.randn(numel, generator=random)
    yield torch.zeros(numel)
    yield torch.full((numel,), -3.0)
    yield torch.randn(numel, generator=random) * 1e-30


def any_size_comes_back(subject: Subject) -> None:
    """A flat float32 tensor of as many finite elements, in no more bytes than ``max_nbytes``."""
    codec = _codec(subject)
    for numel in SIZES:
        for gradient in _gradients(numel):
            decoded = codec.decode(codec.encode(gradient, 7), numel)
            require(bool(decoded.isfinite().all()), f"{numel} numbers came back not finite")


def zeros_come_back_as_zeros(subject: Subject) -> None:
    """What nobody sent moves nothing."""
    codec = _codec(subject)
    for numel in SIZES:
        decoded = codec.decode(codec.encode(torch.zeros(numel), 7), numel)
        require(not decoded.count_nonzero(), f"of {numel} zeros some came back as others")


def coding_is_repeatable(subject: Subject) -> None:
    """The same bytes for the same gradient and seed, from another instance and read-only memory."""
    one, other = _codec(subject), _codec(subject)
    with torch.random.fork_rng():
        for numel in SIZES:
            for gradient, seed in zip(_gradients(numel), SEEDS, strict=False):
                torch.manual_seed(1)
                first = bytes(one.encode(gradient, seed))
                torch.manual_seed(2)
                one.encode(torch.ones(5), seed)
                for again in (one, other):
                    require(
                        bytes(again.encode(gradient.clone(), seed)) == first,
                        f"{numel} numbers were coded twice, with other bytes the second time",
                    )
                back = [
                    again.decode(memory, numel)
                    for again in (one, other)
                    for memory in (memoryview(first), memoryview(bytearray(first)))
                ]
                same = all(torch.equal(back[0], item) for item in back[1:])
                require(same, f"{numel} numbers were decoded twice, and differ")


def gradient_is_not_written_to(subject: Subject) -> None:
    """It is the script's own, and what coding loses is taken from it later."""
    codec = _codec(subject)
    for numel in SIZES:
        for gradient in _gradients(numel):
            before = gradient.clone()
            codec.encode(gradient, 7)
            require(torch.equal(gradient, before), f"encode() writes into {numel} numbers")


def gradient_that_is_not_finite_is_coded(subject: Subject) -> None:
    """A script whose loss diverged is told by its numbers, not by a failing codec."""
    codec = _codec(subject)
    for bad in (torch.inf, -torch.inf, torch.nan):
        gradient = torch.ones(100)
        gradient[17] = bad
        codec.decode(codec.encode(gradient, 7), 100)


def hostile_bytes_are_refused(subject: Subject) -> None:
    """Other lengths raise CodecError; other bytes too, or are decoded as some gradient."""
    plugin: Codec = subject.load()
    random = np.random.default_rng(7)
    for numel in SIZES[:9]:
        coded = bytes(plugin.encode(torch.ones(numel), 7))
        for length in {0, 1, len(coded) - 1, len(coded) + 1, 2 * len(coded)} - {len(coded)}:
            try:
                plugin.decode(memoryview(bytes(length)), numel)
            except CodecError:
                continue
            require(
                length <= plugin.max_nbytes(numel) and length > 0,
                f"{length} bytes were decoded as {numel} numbers, which are coded in {len(coded)}",
            )
        for _ in range(HOSTILE // len(SIZES)):
            _decoded_or_refused(plugin, memoryview(random.bytes(len(coded))), numel)


def _decoded_or_refused(plugin: Codec, payload: memoryview, numel: int) -> None:
    try:
        decoded = plugin.decode(payload, numel)
    except CodecError:
        return
    fits = decoded.dtype == torch.float32 and tuple(decoded.shape) == (numel,)
    require(fits, f"random bytes were decoded as {tuple(decoded.shape)} of {decoded.dtype}")


def reducer_says_what_it_keeps(subject: Subject) -> None:
    """Head and numbers of a codec that another can follow have the lengths that it says."""
    plugin = subject.load()
    if not isinstance(plugin, Reducer):
        return
    for numel in SIZES:
        head, values = plugin.reduce(torch.ones(numel), 7)
        said = plugin.head_nbytes(numel)
        require(said % 4 == 0, f"the head of {numel} numbers has {said} bytes, no multiple of 4")
        require(len(head) == said, f"a head of {len(head)} bytes, where it says {said}")
        require(
            values.dtype == torch.float32 and tuple(values.shape) == (plugin.values_in(numel),),
            f"it keeps {tuple(values.shape)} of {values.dtype}, not {plugin.values_in(numel)}",
        )


def ratio(subject: Subject) -> str:
    """How many bytes a block of 4 MiB is coded in, and what of it is lost."""
    gradient = next(_gradients(1 << 20))
    codec = _codec(subject)
    coded = codec.encode(gradient, 7)
    lost = (gradient - codec.decode(coded, len(gradient))).norm() / gradient.norm()
    return f"{4 * len(gradient) / len(coded):.1f} times smaller, {lost:.1%} of the norm is off"


CASES = (
    Case(check=any_size_comes_back, quick=True),
    Case(check=zeros_come_back_as_zeros, quick=True),
    Case(check=coding_is_repeatable, quick=True),
    Case(check=gradient_is_not_written_to, quick=True),
    Case(check=gradient_that_is_not_finite_is_coded, quick=True),
    Case(check=hostile_bytes_are_refused, quick=True),
    Case(check=reducer_says_what_it_keeps, quick=True),
    Case(check=ratio),
)
