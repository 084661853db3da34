"""Each case of the codecs' contract catches the plugin that breaks it, and names it."""

from __future__ import annotations

import pytest

from elasticps.api.plugins import CODECS
from elasticps.testing import codec_cases
from elasticps.testing.kit import Case, ContractBroken, subject_of
from tests.support.distributions import Install, install

__all__ = ["install"]

CODEC = """
    import torch
    from elasticps.api.codec import Codec, check_nbytes, tensor_from

    class Odd(Codec):
        calls = 0

        def max_nbytes(self, numel):
            return 4 * numel

        def encode(self, gradient, seed):
            return ENCODE

        def decode(self, payload, numel):
            CHECK
            return DECODE
"""
ENCODE = "gradient.numpy().tobytes()"
CHECK = "check_nbytes(payload, 4 * numel)"
DECODE = "tensor_from(payload, torch.float32)"
BROKEN = [
    ("any_size_comes_back", f"{ENCODE} + b'x'", CHECK, DECODE, "limit: 1 to 4"),
    ("any_size_comes_back", ENCODE, CHECK, f"{DECODE} / 0", "not finite"),
    ("any_size_comes_back", ENCODE, CHECK, f"{DECODE}.double()", "decoded no gradient"),
    ("zeros_come_back_as_zeros", ENCODE, CHECK, f"{DECODE} + 1", "came back as others"),
    (
        "coding_is_repeatable",
        "torch.randn_like(gradient).numpy().tobytes()",
        CHECK,
        DECODE,
        "with other bytes the second time",
    ),
    ("gradient_is_not_written_to", "gradient.add_(1).numpy().tobytes()", CHECK, DECODE, "writes"),
    ("hostile_bytes_are_refused", ENCODE, "pass", "torch.zeros(numel)", "were decoded as"),
    ("hostile_bytes_are_refused", ENCODE, "assert len(payload) == 4 * numel", DECODE, "Assertion"),
]


@pytest.mark.parametrize(("case", "encode", "check", "decode", "reason"), BROKEN)
def test_broken_codec_is_caught_and_named(
    install: Install, case: str, encode: str, check: str, decode: str, reason: str
) -> None:
    source = CODEC.replace("ENCODE", encode).replace("CHECK", check).replace("DECODE", decode)
    install("acme-odd", "acme", source, {CODECS: {"odd": "acme:Odd"}})
    with pytest.raises(ContractBroken) as caught:
        subject_of("odd").check(Case(check=getattr(codec_cases, case)))
    assert caught.value.where == "plugin odd of acme-odd 1.0 (acme:Odd)"
    assert reason in caught.value.what
