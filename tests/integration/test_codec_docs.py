"""What docs/codecs.md tells: its own codec works as written, and coded digits are learned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from elasticps.api.job_codec import load_codec
from elasticps.errors import CodecError
from elasticps.testing.members import together
from elasticps.testing.rig import Rig
from tests.integration.test_coded_pushes import SGD
from tests.support.distributions import Install, install

__all__ = ["install"]

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "codecs.md").read_text()
ELASTICPS = Path(sys.executable).with_name("elasticps")


@pytest.fixture
def ternary(install: Install) -> None:
    (project,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    (source,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    described = tomllib.loads(project)
    (module,) = described["tool"]["setuptools"]["py-modules"]
    install(described["project"]["name"], module, source, described["project"]["entry-points"])


@pytest.mark.usefixtures("ternary")
@pytest.mark.parametrize("numel", [1, 2, 7, 4096])
def test_the_documented_codec_keeps_its_contract(numel: int) -> None:
    codec = load_codec("ternary:quantile=0.9")
    assert codec is not None
    gradient = torch.randn(numel, generator=torch.Generator().manual_seed(1))
    coded = bytes(codec.encode(gradient, 2**64 - 1))
    assert coded == bytes(codec.encode(gradient, 2**64 - 1))
    decoded = codec.decode(memoryview(coded), numel)
    assert bool(((decoded == 0) | (decoded.sign() == gradient.sign())).all())
    for bad, field in ((coded[:-1], "payload_length"), (coded[:-1] + b"\xff", "payload")):
        with pytest.raises(CodecError) as caught:
            codec.decode(memoryview(bad), numel)
        assert caught.value.field == field


@pytest.mark.usefixtures("ternary")
async def test_the_documented_codec_trains() -> None:
    async with Rig(servers=2, start_workers=2, codec="ef+ternary:quantile=0.99") as rig:
        members = await rig.workers(2, SGD)
        for number in range(3):
            await together(*(member.step(SGD.random(number)) for member in members))


@pytest.mark.long
def test_coded_digits_are_learned_and_the_bytes_are_told(tmp_path: Path) -> None:
    command = [ELASTICPS, "run", "--nodes", "2", "--codec", "ef+top-k:ratio=0.05+int8", "--json"]
    ran = subprocess.run(
        [*command, ROOT / "examples" / "digits.py", "--epochs", "15"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (accuracy,) = re.findall(r"held-out accuracy ([\d.]+)", ran.stdout)
    assert float(accuracy) >= 0.9
    job = json.loads(ran.stdout.splitlines()[-1])
    assert 0 < job["pushed_bytes"] < job["gradient_bytes"] / 20
    assert "of gradients (codec ef+top-k:ratio=0.05+int8)" in ran.stderr
