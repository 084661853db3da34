"""A checkpoint's weights as one file: equal to the bit, whole or not there, over nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from elasticps.checkpoint import export as module
from elasticps.checkpoint.export import export
from elasticps.checkpoint.manifest import MANIFEST, encoded, read_manifest
from elasticps.checkpoint.snapshot import read
from elasticps.errors import CheckpointError, UsageError
from tests.support.checkpoints import write_round


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_round(tmp_path, 20)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_exported_tensors_are_the_checkpoints_to_the_bit(place: Path, out: Path) -> None:
    made = export(place, out)
    values, exported = read(place).values, load_file(out)
    assert exported.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(exported[name], value)
        assert exported[name].dtype == value.dtype
    assert (made.round, made.job, made.tensors) == (20, "job", len(values))
    assert made.nbytes == out.stat().st_size
    assert made.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["round"] == "20"
    assert names(out.parent) == ["round-00000020", "weights.safetensors"]


@pytest.mark.parametrize("name", ["values.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_not_exported(name: str, place: Path, out: Path) -> None:
    body = bytearray((place / name).read_bytes())
    body[-30] ^= 1
    (place / name).write_bytes(body)
    with pytest.raises(CheckpointError, match=r"damaged|SHA-256|not a checkpoint"):
        export(place, out)
    assert names(out.parent) == ["round-00000020"]


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(place: Path, out: Path) -> None:
    out.write_text("mine")
    with pytest.raises(UsageError, match="not overwritten"):
        export(place, out)
    assert out.read_text() == "mine"
    export(place, out, force=True)
    assert load_file(out)


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    place: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = module.check_whole

    def appear(directory: Path) -> object:
        out.write_text("another's")
        return check(directory)

    monkeypatch.setattr(module, "check_whole", appear)
    with pytest.raises(UsageError, match="not overwritten"):
        export(place, out)
    assert out.read_text() == "another's"
    assert names(out.parent) == ["round-00000020", "weights.safetensors"]


def test_a_pickles_name_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="safetensors") as told:
        export(place, tmp_path / "weights.pt")
    assert told.value.field == "out"


def test_a_folder_that_is_not_there_is_an_error_that_names_it(place: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        export(place, tmp_path / "nowhere" / "weights.safetensors")


def test_a_name_for_what_is_not_there_is_an_error_that_names_both(place: Path, out: Path) -> None:
    manifest = msgspec.structs.replace(read_manifest(place), tied={"head": "gone"})
    (place / MANIFEST).write_bytes(encoded(manifest))
    with pytest.raises(CheckpointError, match="head is tied to gone"):
        export(place, out)
    assert names(out.parent) == ["round-00000020"]
