"""A checkpoint that is damaged, foreign or hostile is refused by the name of what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import torch
import xxhash

from elasticps.checkpoint.directory import newest
from elasticps.checkpoint.manifest import UNSEALED, check_same_model, read_manifest, sealed
from elasticps.checkpoint.snapshot import read
from elasticps.checkpoint.tensor_file import read_tensors, write_tensors
from elasticps.errors import CheckpointError
from tests.support.checkpoints import assert_same, model, snapshot, write_round

VALUES = "values.safetensors"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_round(tmp_path, 4)


def refused(place: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read(place)
    assert caught.value.where
    assert str(place) in caught.value.where
    return caught.value


def edit(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = place / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["digest"] = UNSEALED
    path.write_bytes(sealed(json.dumps(manifest).encode()))


def claim(place: Path, body: bytes) -> None:
    """Replace the values by ``body``, with a manifest that fits it."""
    (place / VALUES).write_bytes(body)
    entry = {"name": VALUES, "size": len(body), "xxh128": xxhash.xxh3_128(body).hexdigest()}
    edit(place, lambda manifest: manifest.update(values=entry))


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [VALUES, "optimizer.safetensors"])
@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_file_that_was_cut_off(file: str, size: int, place: Path) -> None:
    os.truncate(place / file, size)
    error = refused(place)
    assert error.field == f"{file.split('.')[0]}.size"
    assert error.limit is not None
    assert "cut off" in error.what


def test_a_file_that_grew(place: Path) -> None:
    with (place / VALUES).open("ab") as file:
        file.write(b"\0")
    assert refused(place).field == "values.size"


@pytest.mark.parametrize("file", [VALUES, "optimizer.safetensors"])
def test_any_bit_that_was_flipped(file: str, place: Path) -> None:
    path = place / file
    whole = path.read_bytes()
    # Within the header's length a flip may be told as a header that is too long.
    for offset in range(8, len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        error = refused(place)
        assert error.field == f"{file.split('.')[0]}.xxh128"
    path.write_bytes(whole)
    assert_same(read(place), snapshot(4))


def test_a_header_longer_than_the_format_allows(place: Path) -> None:
    claim(place, struct.pack("<Q", 100_000_001) + b"{}")
    error = refused(place)
    assert (error.field, error.limit) == ("header", "100000000 bytes")


def test_a_header_longer_than_the_file(place: Path) -> None:
    claim(place, struct.pack("<Q", 50_000) + b"{}")
    assert "not safetensors" in refused(place).what


def test_a_file_that_is_something_else(place: Path) -> None:
    claim(place, b"x\0\0\0\0\0\0\0something else entirely")
    assert "not safetensors" in refused(place).what


@pytest.mark.parametrize("file", [VALUES, "optimizer.safetensors"])
def test_a_file_that_is_missing(file: str, place: Path) -> None:
    (place / file).unlink()
    error = refused(place)
    assert error.field == file.split(".")[0]
    assert "missing" in error.what


def test_a_pipe_in_a_files_place_is_not_waited_for(place: Path) -> None:
    (place / VALUES).unlink()
    os.mkfifo(place / VALUES)
    assert "regular" in refused(place).what


@pytest.mark.parametrize("start", [pickle.dumps({}), b"PK\x03\x04 as torch.save begins"])
@pytest.mark.parametrize("file", [VALUES, "manifest.json"])
def test_a_pickle_is_never_loaded(file: str, start: bytes, place: Path) -> None:
    (place / file).write_bytes(start + b" " * 20)
    assert "pickle" in refused(place).what


# -- manifest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 200])
def test_a_manifest_that_was_cut_off(size: int, place: Path) -> None:
    os.truncate(place / "manifest.json", size)
    assert refused(place).field == "manifest.json"


def test_a_manifest_that_is_missing(place: Path) -> None:
    (place / "manifest.json").unlink()
    assert refused(place).field == "manifest.json"


def test_a_manifest_beyond_all_measure_is_not_read(place: Path) -> None:
    os.truncate(place / "manifest.json", 100_000_001)
    assert refused(place).limit == "100000000 bytes"


@pytest.mark.parametrize(
    "name", ["../values.safetensors", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b"]
)
def test_a_file_outside_the_checkpoint(name: str, place: Path) -> None:
    edit(place, lambda manifest: manifest["values"].update(name=name))
    error = refused(place)
    assert (error.field, error.limit) == ("values.name", "a plain file name")


@pytest.mark.parametrize("number", [1, 3, 6])
def test_another_format_is_told_before_anything_else(number: int, place: Path) -> None:
    (place / "manifest.json").write_text(f'{{"format": {number}, "new": "shape"}}')
    error = refused(place)
    assert (error.field, error.limit) == ("format", "4 or 5")
    assert "elasticps version" in str(error)


def test_a_manifest_with_any_bit_flipped_is_refused(place: Path) -> None:
    path = place / "manifest.json"
    whole = path.read_bytes()
    random = Random(1)
    for flip in (random.randrange(8 * len(whole)) for _ in range(1500)):
        damaged = bytearray(whole)
        damaged[flip // 8] ^= 1 << flip % 8
        path.write_bytes(damaged)
        refused(place)
    path.write_bytes(whole)
    assert_same(read(place), snapshot(4))


def test_a_manifest_with_another_position_is_refused_by_its_digest(place: Path) -> None:
    path = place / "manifest.json"
    text = path.read_text()
    assert '"position": 28' in text
    path.write_text(text.replace('"position": 28', '"position": 29'))
    assert refused(place).field == "digest"


@pytest.mark.parametrize("digest", ["", "0" * 64, "ü", "[1]"])
def test_a_manifest_with_another_digest_is_refused(digest: str, place: Path) -> None:
    path = place / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "digest": digest}))
    assert refused(place).field == "digest"


def test_a_manifest_that_is_not_utf_8_is_refused(place: Path) -> None:
    path = place / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"adam"', b'"\xffdam"'))
    assert refused(place).field in ("digest", "manifest.json")


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("round", "ten"),
        ("round", -1),
        ("model", {}),
        ("state", {"unknown": {}}),
        ("state", {"scale": {"tensors": "step"}}),
        ("values", None),
    ],
)
def test_a_manifest_that_says_what_cannot_be(key: str, item: object, place: Path) -> None:
    edit(place, lambda manifest: manifest.update({key: item}))
    error = refused(place)
    assert key in str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"position": -1},
        {"position": 201},
        {"size": 0},
        {"batch_size": 0},
        {"epochs": 0},
        {"given_back": [[0, 90]]},
        {"given_back": [[3, 3]]},
        {"given_back": [[-2, 3]]},
    ],
)
def test_a_data_position_outside_the_data(change: dict[str, Any], place: Path) -> None:
    edit(place, lambda manifest: manifest["data"].update(change))
    assert refused(place).field == "data"


def test_a_state_without_its_tensor(place: Path) -> None:
    edit(place, lambda manifest: manifest["state"]["scale"]["tensors"].append("max_exp_avg"))
    error = refused(place)
    assert error.field == "optimizer"
    assert "max_exp_avg" in error.what


@pytest.mark.parametrize(("key", "item"), [("shape", [5, 3]), ("dtype", "float64")])
def test_values_of_other_shapes_than_the_model(key: str, item: object, place: Path) -> None:
    edit(place, lambda manifest: manifest["model"]["parameters"][0].update({key: item}))
    error = refused(place)
    assert error.field == "0.weight"


# -- the job's model ----------------------------------------------------------------------------


def test_another_optimizer_is_another_model(place: Path) -> None:
    manifest = read_manifest(place)
    check_same_model(manifest.model, model(), place)
    with pytest.raises(CheckpointError, match="adam there, sgd here") as caught:
        check_same_model(manifest.model, model("sgd"), place)
    assert caught.value.field == "optimizer"


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"shape": (5, 3)}, {"dtype": "float64"}, None]
)
def test_other_parameters_are_another_model(change: dict[str, Any] | None, place: Path) -> None:
    described = model()
    first, *rest = described.parameters
    others = rest if change is None else [msgspec.structs.replace(first, **change), *rest]
    here = msgspec.structs.replace(described, parameters=tuple(others))
    with pytest.raises(CheckpointError, match="another model") as caught:
        check_same_model(read_manifest(place).model, here, place)
    assert caught.value.field == "parameters"


def test_other_options_and_blocks_are_the_same_model(place: Path) -> None:
    here = msgspec.structs.replace(
        model(), options={"lr": 1.0}, groups=({"lr": 1.0},), block_bytes=8192
    )
    check_same_model(read_manifest(place).model, here, place)


# -- which one ----------------------------------------------------------------------------------


def test_the_newest_is_taken_or_the_very_one_that_was_named(tmp_path: Path) -> None:
    old, new = write_round(tmp_path, 4), write_round(tmp_path, 12)
    assert newest(tmp_path) == new
    assert newest(old) == old
    (new / "manifest.json").unlink()
    assert newest(tmp_path) == old


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_directory_without_a_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no complete checkpoint") as caught:
        newest(tmp_path / name)
    assert caught.value.field == "resume"


@pytest.mark.parametrize(("body", "says"), [(b"\x80\x04", "pickle"), (b"text", "a directory")])
def test_a_file_to_resume_from(body: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(body)
    with pytest.raises(CheckpointError, match=says):
        newest(tmp_path / "model.pt")


def test_a_file_whose_header_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """Safetensors begins with the header's length: one of 896 bytes begins as a pickle does."""
    starts = set()
    for length in range(1, 300):
        tensors = {"w" * length: torch.arange(3.0)}
        path = tmp_path / f"file-{length}"
        entry = write_tensors(path, tensors)
        starts.add(path.read_bytes()[0])
        found = read_tensors(tmp_path, entry, "values")
        assert torch.equal(found["w" * length], tensors["w" * length])
    assert 0x80 in starts
