"""What workers hold of a block: how far it is from the value, and that it never drifts."""

from __future__ import annotations

import pytest
import torch

from elasticps.api.codec import Codec
from elasticps.api.job_codec import JobCodec, load_codec
from elasticps.core.blocks import partition
from elasticps.errors import PluginError, UsageError
from elasticps.server.coded_value import HELD, CodedValue
from elasticps.server.joint_step import is_joint
from elasticps.server.tensor_block import TensorBlock
from elasticps.testing.members import Blueprint
from elasticps.wire.coded_values import add, are_coded, digest_of
from elasticps.wire.tensors import bytes_of

NUMEL, CHUNK = 20_000, 256


def int8(text: str = "int8") -> JobCodec:
    codec = load_codec(text)
    assert codec is not None
    return codec


def random(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_workers_hold_is_within_half_a_step_of_one_rounds_difference(
    dtype: torch.dtype,
) -> None:
    """However many rounds: what a round loses is in the next one's difference."""
    value = random(0).to(torch.float64 if dtype == torch.float64 else torch.float32)
    coded, worker = CodedValue(value, dtype, int8()), value.to(dtype, copy=True)
    for round_ in range(40):
        before = coded.held.clone()
        value += random(round_ + 1, scale=0.1 ** (round_ % 4)).to(value.dtype)
        coded.follow(value)
        lacked = (value - before.to(value.dtype)).abs().split(CHUNK)
        rounding = value.abs() * torch.finfo(dtype).eps
        bound = torch.cat([part.max().expand(len(part)) / 254 for part in lacked]) + rounding
        assert bool(((value - coded.held.to(value.dtype)).abs() <= 1.01 * bound + 1e-7).all())
        found = coded.difference_from(digest_of(bytes_of(worker)))
        assert found is not None
        assert 3.9 * len(found.payload) < 4 * NUMEL
        add(worker, int8().decode(found.payload, NUMEL))
        assert torch.equal(worker, coded.held)
        assert digest_of(bytes_of(worker)) == found.makes


def test_value_that_stays_is_reached_to_the_last_bits() -> None:
    value = random(1)
    coded = CodedValue(torch.zeros(NUMEL), torch.float32, int8())
    for _ in range(5):
        coded.follow(value)
    torch.testing.assert_close(coded.held, value, rtol=1e-6, atol=1e-7)


def test_only_a_worker_with_the_value_of_the_round_before_is_given_a_difference() -> None:
    value = random(1)
    coded = CodedValue(value, torch.float32, int8())
    missed = digest_of(bytes_of(coded.held))
    same = coded.difference_from(missed)
    assert same is not None
    assert (len(same.payload), same.makes) == (0, missed)
    for seed in (2, 3):
        coded.follow(random(seed))
    for holds in (None, missed, 0):
        assert coded.difference_from(holds) is None


def test_value_that_is_not_finite_for_a_round_does_not_stay_so_with_the_workers() -> None:
    coded = CodedValue(random(1), torch.float32, int8())
    bad = random(2)
    bad[17] = torch.nan
    for value in (bad, random(3)):
        before = digest_of(bytes_of(coded.held))
        coded.follow(value)
        assert bool((coded.held.isnan() == value.isnan()).all())
        assert coded.difference_from(before) is None


def test_replica_that_follows_and_one_from_a_snapshot_hold_the_same_bits() -> None:
    blueprint = Blueprint(shapes=((NUMEL,),), options={"lr": 0.1}, block_bytes=1 << 20)
    model = blueprint.model
    (block,) = partition(model)

    def replica() -> TensorBlock:
        return TensorBlock(block, model.parameters[0], model, blueprint.plugin, int8())

    primary, backup, late = replica(), replica(), replica()
    for each in (primary, backup):
        state, payload = TensorBlock.dump(primary)
        each.load(state, memoryview(payload))
    for round_ in range(6):
        if round_ == 3:
            state, payload = primary.dump(for_replica=True)
            late.load(state, memoryview(payload))
        for each in (primary, backup, *((late,) if round_ >= 3 else ())):
            each.step(random(round_), {})
        assert primary.value_bytes() == backup.value_bytes()
    assert late.value_bytes() == primary.value_bytes() != bytes_of(primary.value).tobytes()
    holds = digest_of(memoryview(primary.value_bytes()))
    assert late.difference_from(holds) == primary.difference_from(holds)
    rows, _ = primary.for_file()
    assert HELD not in {row.key for row in rows.tensors}
    assert primary.nbytes_held > 2 * block.nbytes


def test_block_whose_values_are_coded_is_stepped_by_itself() -> None:
    blueprint = Blueprint(shapes=((NUMEL,),), options={"lr": 0.1}, block_bytes=1 << 20)
    model = blueprint.model
    (block,) = partition(model)
    plain, coded = (
        TensorBlock(block, model.parameters[0], model, blueprint.plugin, codec)
        for codec in (None, int8())
    )
    assert is_joint(plain)
    assert not is_joint(coded)


class Plain(Codec):
    """As a plugin is that knows nothing of values."""

    def max_nbytes(self, numel: int) -> int:
        return 4 * numel

    def encode(self, gradient: torch.Tensor, seed: int) -> bytes:
        return gradient.numpy().tobytes()

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        raise ZeroDivisionError


def test_values_are_coded_where_the_codec_says_so_and_no_gradient_only_codec_is_asked() -> None:
    blueprint = Blueprint(shapes=((NUMEL,), (7,)), block_bytes=1 << 20)
    large, small = partition(blueprint.model)
    assert are_coded(int8(), large)
    assert are_coded(int8("ef+int8:chunk=64,values=true"), large)
    assert not are_coded(int8(), small)
    assert not are_coded(None, large)
    for codec in (
        JobCodec("plain", Plain()),
        *map(int8, ("int8:values=false", "bf16", "top-k+int8")),
    ):
        assert not are_coded(codec, large)
    with pytest.raises(UsageError, match=r"field values\) \(limit: true or false"):
        load_codec("int8:values=maybe")


def test_codec_that_cannot_decode_values_is_named() -> None:
    coded = CodedValue(random(1), torch.float32, JobCodec("plain", Plain()))
    with pytest.raises(PluginError, match="codec plain"):
        coded.follow(random(2))
