"""What a worker's pushes carry: coded once a step, and nothing lost where errors are fed back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.api.job_codec import JobCodec, load_codec
from elasticps.core.ids import Seq, WorkerId
from elasticps.testing.members import Blueprint
from elasticps.worker.encoder import Encoder
from elasticps.worker.parameters import memory_of
from tests.support.properties import REPRODUCIBLE
from tests.unit.test_codecs import loaded

LOSSY = ["int8", "top-k:ratio=0.1", "random-k:ratio=0.1", "sign", "power-sgd:rank=1", "fp16"]


class Block:
    """One block of 1000 numbers and its worker's encoder."""

    def __init__(self, text: str, dtype: torch.dtype = torch.float32) -> None:
        blueprint = Blueprint(shapes=((1000,),), dtype=dtype, block_bytes=8192)
        (self.parameter,) = blueprint.parameters()
        (self.memory,) = memory_of(blueprint.model, [self.parameter])
        self.encoder = Encoder(load_codec(text), WorkerId(5))
        self.seq = 0

    @property
    def residual(self) -> torch.Tensor:
        residual = self.encoder.residual(self.memory.block.id)
        return torch.zeros(1000) if residual is None else residual.clone()

    def give(self, seed: int) -> torch.Tensor:
        """The next step's gradient."""
        self.seq += 1
        gradient = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        self.parameter.grad = gradient.to(self.parameter.dtype)
        return gradient

    def push(self) -> bytes:
        update = self.memory.outgoing(None)
        assert update is not None
        return bytes(self.encoder.payload(self.memory, Seq(self.seq), update))


def decoded(codec: JobCodec, payload: bytes) -> torch.Tensor:
    return codec.decode(memoryview(payload), 1000)


@pytest.mark.parametrize("text", LOSSY)
@settings(REPRODUCIBLE, max_examples=25)
@given(counted=st.lists(st.booleans(), min_size=1, max_size=20))
def test_decoded_pushes_that_counted_and_the_residual_are_the_gradients(
    text: str, counted: list[bool]
) -> None:
    block = Block(f"ef+{text}")
    given_, arrived = torch.zeros(1000).double(), torch.zeros(1000).double()
    for seed, counts in enumerate(counted):
        gradient, before = block.give(seed), block.residual
        payload = block.push()
        block.encoder.settle(counted=counts)
        if counts:
            given_ += gradient
            arrived += decoded(loaded(text), payload)
        else:
            assert torch.equal(block.residual, before)
    torch.testing.assert_close(arrived + block.residual, given_, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("text", [*LOSSY, "ef+top-k", "ef+random-k+sign"])
def test_push_that_is_sent_again_is_the_same_bytes_and_folds_once(text: str) -> None:
    block, once = Block(text), Block(text)
    for seed in range(3):
        block.give(seed)
        once.give(seed)
        payloads = {block.push() for _ in range(3)}
        assert payloads == {once.push()}
        for encoder in (block.encoder, once.encoder):
            encoder.settle(counted=True)
        assert torch.equal(block.residual, once.residual)
    assert block.encoder.pushed_bytes == 3 * once.encoder.pushed_bytes
    assert once.encoder.gradient_bytes == 3 * 4000


def test_seed_differs_by_step_and_worker() -> None:
    block, other = Block("random-k:ratio=0.01"), Block("random-k:ratio=0.01")
    other.encoder = Encoder(loaded("random-k:ratio=0.01"), WorkerId(6))
    payloads = set()
    for _ in range(3):
        for each in (block, other):
            each.give(0)
            payloads.add(each.push())
            each.encoder.settle(counted=True)
    assert len(payloads) == 6


def test_step_without_gradient_pushes_nothing_and_keeps_the_residual() -> None:
    block = Block("ef+sign")
    block.give(0)
    block.push()
    block.encoder.settle(counted=True)
    before = block.residual
    assert bool(before.any())
    block.parameter.grad = None
    assert block.memory.outgoing(None) is None
    block.encoder.settle(counted=True)
    assert torch.equal(block.residual, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_gradients_of_other_dtypes_are_coded_as_float32(dtype: torch.dtype) -> None:
    block = Block("top-k:ratio=1", dtype)
    block.give(0)
    assert block.parameter.grad is not None
    expected = block.parameter.grad.to(torch.float32)
    assert torch.equal(decoded(loaded("top-k:ratio=1"), block.push()), expected)
    assert block.encoder.gradient_bytes == 1000 * dtype.itemsize


def test_without_a_codec_the_gradient_goes_in_place() -> None:
    block = Block("none")
    gradient = block.give(0)
    update = block.memory.outgoing(None)
    assert update is not None
    payload = block.encoder.payload(block.memory, Seq(1), update)
    gradient.fill_(0.5)
    assert bytes(payload) == gradient.numpy().tobytes()
    assert block.encoder.pushed_bytes == block.encoder.gradient_bytes == 4000
