"""The built-in codecs: what comes back, how far it is off, and what a stranger's bytes do."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elasticps.api.codec import Codec
from elasticps.api.job_codec import JobCodec, load_codec
from elasticps.codecs.cast import Float32
from elasticps.codecs.power_sgd import matrix_shape
from elasticps.codecs.random_k import drawn
from elasticps.errors import CodecError, PluginError, UsageError
from tests.support.properties import REPRODUCIBLE

CODECS = [
    "bf16",
    "fp16",
    "int8",
    "int8:chunk=7",
    "top-k:ratio=0.1",
    "top-k:ratio=1",
    "random-k:ratio=0.3",
    "sign",
    "sign:chunk=5",
    "power-sgd:rank=1",
    "power-sgd:rank=2,iterations=3",
    "top-k:ratio=0.2+int8",
    "random-k:ratio=0.2+bf16",
    "power-sgd:rank=2+fp16",
    "top-k:ratio=0.5+random-k:ratio=0.5+sign:chunk=3",
    "top-k:ratio=0.5+none",
]
SIZES = [1, 2, 3, 7, 255, 256, 257, 1000, 4097, 65535, 65536, 65537, 200_003]
EPS = 2.0**-23

numbers = st.floats(width=32, min_value=-(2.0**99), max_value=2.0**99)
gradients = st.lists(numbers, min_size=1, max_size=300).map(torch.tensor)
"""Any finite numbers far from float32's end, zeros and subnormals among them."""
any_size = st.integers(1, 5000)
seeds = st.integers(0, 2**64 - 1)


@functools.cache
def loaded(text: str) -> JobCodec:
    codec = load_codec(text)
    assert codec is not None
    return codec


def random(numel: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def there_and_back(text: str, gradient: torch.Tensor, seed: int = 7) -> torch.Tensor:
    codec = loaded(text)
    before = gradient.clone()
    coded = codec.encode(gradient, seed)
    assert torch.equal(gradient.view(torch.int32), before.view(torch.int32)), "it was written to"
    assert len(coded) <= codec.max_nbytes(gradient.numel())
    decoded = codec.decode(memoryview(bytearray(coded)), gradient.numel())
    from_read_only = codec.decode(memoryview(bytes(coded)), gradient.numel())
    assert torch.equal(decoded.view(torch.int32), from_read_only.view(torch.int32))
    return decoded


def squares(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().sum())


# -- each codec's bound -------------------------------------------------------------------------


@REPRODUCIBLE
@given(gradient=gradients)
def test_casts_are_off_by_their_rounding_alone(gradient: torch.Tensor) -> None:
    for text, significant, smallest in (("bf16", 2.0**-8, 2.0**-134), ("fp16", 2.0**-11, 2.0**-25)):
        wanted = gradient.double()
        if text == "fp16":
            wanted = wanted.clamp(-65504, 65504)
        error = (there_and_back(text, gradient).double() - wanted).abs()
        assert bool((error <= wanted.abs() * significant + smallest).all())


@REPRODUCIBLE
@given(gradient=gradients, chunk=st.integers(1, 64))
def test_int8_is_off_by_at_most_half_a_step_of_its_chunk(
    gradient: torch.Tensor, chunk: int
) -> None:
    decoded = there_and_back(f"int8:chunk={chunk}", gradient).double()
    for mine, its in zip(gradient.double().split(chunk), decoded.split(chunk), strict=True):
        largest = float(mine.abs().max())
        bound = largest / 254 * (1 + 256 * EPS) if largest > 4e-37 else largest
        assert float((mine - its).abs().max()) <= bound


@REPRODUCIBLE
@given(gradient=gradients, ratio=st.floats(0.01, 1))
def test_top_k_keeps_the_largest_exactly_and_the_rest_becomes_zero(
    gradient: torch.Tensor, ratio: float
) -> None:
    decoded = there_and_back(f"top-k:ratio={ratio}", gradient)
    kept = max(1, int(ratio * gradient.numel()))
    left = decoded != 0
    assert torch.equal(decoded[left], gradient[left])
    by_size = gradient.abs().sort(descending=True).values
    assert torch.equal(decoded.abs().sort(descending=True).values[:kept], by_size[:kept])
    rest = squares(gradient) * (1 - kept / gradient.numel())
    assert squares(gradient - decoded) <= rest * (1 + 1e-9)


@pytest.mark.parametrize("numel", [65_000, 1_000_003])
@pytest.mark.parametrize("kind", ["normal", "equal", "sorted", "few"])
def test_top_k_of_a_large_block_is_that_of_a_full_sort(numel: int, kind: str) -> None:
    gradient = {
        "normal": random(numel),
        "equal": torch.ones(numel),
        "sorted": torch.arange(numel, dtype=torch.float32),
        "few": torch.zeros(numel).index_fill(0, torch.tensor([5, 77, numel - 1]), -3.0),
    }[kind]
    decoded = there_and_back("top-k:ratio=0.01", gradient)
    kept = int(0.01 * numel)
    expected = gradient.abs().sort(descending=True).values[:kept]
    assert torch.equal(decoded.abs().sort(descending=True).values[:kept], expected)
    assert int(decoded.count_nonzero()) <= kept


@REPRODUCIBLE
@given(gradient=gradients, seed=seeds)
def test_random_k_keeps_one_of_each_piece_exactly(gradient: torch.Tensor, seed: int) -> None:
    decoded = there_and_back("random-k:ratio=0.25", gradient, seed)
    kept = max(1, int(0.25 * gradient.numel()))
    places, sizes = drawn(seed, gradient.numel(), kept)
    assert sizes.sum() == gradient.numel()
    assert (np.searchsorted(np.cumsum(sizes), places, side="right") == np.arange(kept)).all()
    expected = torch.zeros_like(gradient)
    expected[torch.from_numpy(places)] = gradient[torch.from_numpy(places)]
    assert torch.equal(decoded, expected)


def test_unbiased_random_k_is_the_gradient_in_the_mean() -> None:
    gradient = random(64) + 3
    codec = loaded("random-k:ratio=0.25,unbiased=true")
    drawn_often = [codec.decode(codec.encode(gradient, seed), 64) for seed in range(4000)]
    mean = torch.stack(drawn_often).mean(0)
    # Each is 4 g with a chance of 1/4: a deviation of sqrt(3) |g|, over sqrt(4000) in the mean.
    assert bool(((mean - gradient).abs() < 6 * math.sqrt(3 / 4000) * gradient.abs()).all())


@REPRODUCIBLE
@given(gradient=gradients, chunk=st.integers(1, 64))
def test_sign_has_the_square_error_of_scaled_signs(gradient: torch.Tensor, chunk: int) -> None:
    decoded = there_and_back(f"sign:chunk={chunk}", gradient).double()
    for mine, its in zip(gradient.double().split(chunk), decoded.split(chunk), strict=True):
        exact = squares(mine) - float(mine.abs().sum()) ** 2 / len(mine)
        slack = squares(mine) * 1e-5 + 1e-80
        assert abs(squares(mine - its) - exact) <= slack
        assert bool((its * mine >= 0).all())


@REPRODUCIBLE
@given(gradient=gradients, rank=st.integers(1, 3), seed=seeds)
def test_power_sgd_never_errs_by_more_than_the_gradient(
    gradient: torch.Tensor, rank: int, seed: int
) -> None:
    decoded = there_and_back(f"power-sgd:rank={rank}", gradient, seed)
    assert squares(gradient - decoded) <= squares(gradient) * (1 + 1e-4) + 1e-80


def test_power_sgd_restores_a_block_whose_matrix_has_its_rank() -> None:
    rows, columns = matrix_shape(10_000)
    block = (random(rows * 2).view(rows, 2) @ random(2 * columns, 1).view(2, columns)).view(-1)
    torch.testing.assert_close(there_and_back("power-sgd:rank=2", block), block)
    assert squares(block - there_and_back("power-sgd:rank=1", block)) > 0.01 * squares(block)


def test_stack_errs_by_no_more_than_both_of_its_codecs() -> None:
    gradient = random(10_000)
    kept = there_and_back("top-k:ratio=0.1", gradient)
    stacked = there_and_back("top-k:ratio=0.1+int8", gradient)
    assert float((stacked - kept).abs().max()) <= float(gradient.abs().max()) / 254 * (1 + 1e-5)
    assert bool((stacked[kept == 0] == 0).all())
    wire = {text: len(loaded(text).encode(gradient, 0)) for text in CODECS[:3]}
    assert wire == {"bf16": 20_000, "fp16": 20_000, "int8": 10_000 + 4 * 40}
    assert len(loaded("top-k:ratio=0.1+int8").encode(gradient, 0)) == 2000 + 1000 + 4 * 4


# -- what all codecs promise --------------------------------------------------------------------


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("text", CODECS)
def test_any_size_comes_back_as_so_many_finite_numbers(text: str, numel: int) -> None:
    decoded = there_and_back(text, random(numel))
    assert decoded.shape == (numel,)
    assert decoded.dtype == torch.float32
    assert bool(decoded.isfinite().all())


@pytest.mark.parametrize("text", CODECS)
def test_zeros_come_back_as_zeros(text: str) -> None:
    for numel in (1, 300, 70_000):
        assert int(there_and_back(text, torch.zeros(numel)).count_nonzero()) == 0


@REPRODUCIBLE
@given(gradient=gradients, seed=seeds)
def test_same_gradient_and_seed_are_the_same_bytes(gradient: torch.Tensor, seed: int) -> None:
    for text in CODECS:
        coded = [bytes(loaded(text).encode(gradient.clone(), seed)) for _ in range(3)]
        assert coded[0] == coded[1] == coded[2]


@pytest.mark.parametrize("text", CODECS)
def test_same_bytes_wherever_in_memory_a_large_gradient_lies(text: str) -> None:
    memory = torch.zeros(100_100)
    coded = set()
    for shift in range(5):
        memory[shift : shift + 100_003] = random(100_003)
        coded.add(bytes(loaded(text).encode(memory[shift : shift + 100_003], 5)))
    assert len(coded) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", [item for item in CODECS if "random-k" not in item])
def test_what_is_not_finite_stays_visible(text: str, bad: float) -> None:
    for numel in (1, 300, 70_000):
        gradient = random(numel)
        gradient[numel // 2] = bad
        coded = loaded(text).encode(gradient, 3)
        assert bytes(coded) == bytes(loaded(text).encode(gradient.clone(), 3))
        assert not math.isfinite(loaded(text).decode(coded, numel)[numel // 2])


@pytest.mark.parametrize("text", ["bf16", "fp16", "int8", "sign", "top-k:ratio=1"])
def test_largest_and_smallest_finite_numbers_stay_finite(text: str) -> None:
    largest = torch.finfo(torch.float32).max
    gradient = torch.tensor([largest, -largest, 1e38, 1e-45, -1e-45, 0.0, 65519.0, -65521.0] * 300)
    assert bool(there_and_back(text, gradient).isfinite().all())


@REPRODUCIBLE
@given(payload=st.binary(max_size=400), numel=st.integers(1, 500))
def test_any_bytes_decode_or_are_refused_with_a_field(payload: bytes, numel: int) -> None:
    for text in CODECS:
        codec = loaded(text)
        length = codec.max_nbytes(numel)
        for received in (payload, (payload * (length + 1))[:length]):
            assert decoded_or_field(codec, received, numel) in (
                (numel,),
                "payload_length",
                "places",
            )


def decoded_or_field(codec: JobCodec, received: bytes, numel: int) -> object:
    """The shape of what comes out, or the field of the refusal."""
    try:
        return codec.decode(memoryview(bytearray(received)), numel).shape
    except CodecError as error:
        return error.field


@pytest.mark.parametrize("text", CODECS)
def test_payload_of_another_length_is_refused_with_the_limit(text: str) -> None:
    codec = loaded(text)
    coded = bytes(codec.encode(random(300), 0))
    for received in (coded[:-1], coded + b"\0", b"", coded[:1]):
        with pytest.raises(CodecError) as caught:
            codec.decode(memoryview(bytearray(received)), 300)
        assert caught.value.field == "payload_length"
        assert caught.value.limit


@pytest.mark.parametrize("places", [[0, 0, 1], [2, 1, 0], [0, 1, 30], [0, 1, 65535]])
def test_places_that_no_encoder_made_are_refused(places: list[int]) -> None:
    head = np.array([*places, 0], "<u2").tobytes()
    with pytest.raises(CodecError) as caught:
        loaded("top-k:ratio=0.1").decode(memoryview(head + bytes(12)), 30)
    assert (caught.value.field, caught.value.limit) == ("places", "0 to 29")


# -- the choice ---------------------------------------------------------------------------------


def test_none_is_no_codec_and_ef_is_no_plugin() -> None:
    assert load_codec("none") is None
    assert loaded("ef+top-k:ratio=1e-1+int8").error_feedback
    assert not loaded("top-k:ratio=1e-1+int8").error_feedback


@pytest.mark.parametrize("text", ["", "ef", "ef+", "+int8", "int8+", "ef+none", "int8+ef", "ef+ef"])
def test_what_spells_no_codec_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_codec(text)
    assert caught.value.field == "codec"


def test_nothing_can_follow_a_codec_that_keeps_every_number() -> None:
    with pytest.raises(UsageError, match="int8 keeps every number"):
        load_codec("int8+top-k")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("top-k:ratio=0", "ratio 0"),
        ("top-k:ratio=1.5", "ratio 1.5"),
        ("random-k:ratio=nan", "ratio nan"),
        ("int8:chunk=0", "chunk 0"),
        ("sign:chunk=much", "chunk of 'much'"),
        ("random-k:unbiased=maybe", "unbiased of 'maybe'"),
        ("power-sgd:rank=0", "rank 0"),
        ("int8:bits=4", "has no option 'bits'"),
        ("int9", "no plugin named 'int9'"),
    ],
)
def test_option_that_does_not_fit_is_told(text: str, reason: str) -> None:
    with pytest.raises(PluginError, match=reason):
        load_codec(text)


# -- codecs that break their contract -----------------------------------------------------------


class Odd(Float32):
    """A codec that does as a test tells it."""

    def __init__(self, coded: object = b"", decoded: object = None) -> None:
        self.coded = coded
        self.decoded = decoded

    def encode(self, gradient: torch.Tensor, seed: int) -> memoryview:
        return self.coded  # type: ignore[return-value]

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        return self.decoded if payload else 1 / 0  # type: ignore[return-value]


def odd(codec: Codec) -> JobCodec:
    return JobCodec("odd", codec)


@pytest.mark.parametrize("coded", [b"", bytes(41), None, "text"])
def test_encoder_that_breaks_its_contract_is_named(coded: object) -> None:
    with pytest.raises(PluginError, match="codec odd"):
        odd(Odd(coded)).encode(random(10), 0)


@pytest.mark.parametrize(
    "decoded", [None, torch.zeros(9), torch.zeros(10).double(), torch.zeros(2, 5)]
)
def test_decoder_that_breaks_its_contract_is_an_error_of_the_payload(decoded: object) -> None:
    with pytest.raises(CodecError, match="codec odd decoded no gradient") as caught:
        odd(Odd(decoded=decoded)).decode(memoryview(b"x"), 10)
    assert caught.value.field == "payload"
    with pytest.raises(CodecError, match="codec odd: ZeroDivisionError"):
        odd(Odd()).decode(memoryview(b""), 10)
