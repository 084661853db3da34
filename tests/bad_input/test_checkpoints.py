"""Bad input by checkpoints: refused by the name of what is wrong, and left as they are."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import xxhash

from elasticps.checkpoint.manifest import UNSEALED, check_same_model, sealed
from elasticps.checkpoint.snapshot import read
from elasticps.cli.main import main
from elasticps.errors import CheckpointError
from tests.support.checkpoints import model, write_round

pytestmark = pytest.mark.bad_input

VALUES, MANIFEST = "values.safetensors", "manifest.json"
EVIL = "evil-was-here"


class Evil:
    """Unpickled, it would make a file."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (EVIL,)


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda place: os.truncate(place / name, size)


def flipped(name: str, offset: int) -> Callable[[Path], None]:
    def flip(place: Path) -> None:
        body = bytearray((place / name).read_bytes())
        body[offset] ^= 0x10
        (place / name).write_bytes(body)

    return flip


def replaced(name: str, body: bytes) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes(body)  # type: ignore[return-value]


def missing(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def linked(name: str, target: str) -> Callable[[Path], None]:
    def link(place: Path) -> None:
        (place / name).unlink()
        (place / name).symlink_to(target)

    return link


def claimed(body: bytes) -> Callable[[Path], None]:
    """Values that are ``body``, by a manifest that says so under a right digest."""

    def claim(place: Path) -> None:
        (place / VALUES).write_bytes(body)
        entry = {"name": VALUES, "size": len(body), "xxh128": xxhash.xxh3_128(body).hexdigest()}
        said(values=entry)(place)

    return claim


def said(**fields: Any) -> Callable[[Path], None]:
    """A manifest that says this, sealed as ours are."""

    def say(place: Path) -> None:
        manifest = {**json.loads((place / MANIFEST).read_text()), **fields, "digest": UNSEALED}
        (place / MANIFEST).write_bytes(sealed(json.dumps(manifest).encode()))

    return say


def named(name: str) -> Callable[[Path], None]:
    """Values in a file of this name."""

    def rename(place: Path) -> None:
        entry = json.loads((place / MANIFEST).read_text())["values"]
        said(values={**entry, "name": name})(place)

    return rename


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is done to a whole checkpoint, and the field and limit, or words, that it is told by."""

    does: Callable[[Path], None]
    field: str
    says: str = ""


ROWS = {
    "values cut off": Row(does=cut(VALUES, 100), field="values.size", says="cut off"),
    "values cut to nothing": Row(does=cut(VALUES, 0), field="values.size", says="cut off"),
    "optimizer state cut off": Row(
        does=cut("optimizer.safetensors", 9), field="optimizer.size", says="cut off"
    ),
    "a manifest cut off": Row(does=cut(MANIFEST, 200), field=MANIFEST),
    "a bit flipped in the values": Row(does=flipped(VALUES, -1), field="values.xxh128"),
    "a bit flipped in their header": Row(does=flipped(VALUES, 20), field="values.xxh128"),
    "a bit flipped in the optimizer state": Row(
        does=flipped("optimizer.safetensors", -1), field="optimizer.xxh128"
    ),
    "a bit flipped in the manifest's digest": Row(does=flipped(MANIFEST, 30), field=""),
    "a header of 100 MB and a byte": Row(
        does=claimed(struct.pack("<Q", 100_000_001) + b"{}"),
        field="header",
        says="100000000 bytes",
    ),
    "a header of 2^64 - 1 bytes": Row(
        does=claimed(b"\xff" * 8 + b"{}"), field="header", says="100000000 bytes"
    ),
    "a header that is no JSON": Row(
        does=claimed(struct.pack("<Q", 8) + b"{" * 8), field="values", says="not safetensors"
    ),
    "a header that is no UTF-8": Row(
        does=claimed(struct.pack("<Q", 8) + b'{"\xff\xff":1'), field="values"
    ),
    "tensors beyond the file": Row(
        does=claimed(
            struct.pack("<Q", 63)
            + b'{"0.weight":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
        ),
        field="values",
    ),
    "no values": Row(does=missing(VALUES), field="values", says="missing"),
    "no optimizer state": Row(
        does=missing("optimizer.safetensors"), field="optimizer", says="missing"
    ),
    "no manifest": Row(does=missing(MANIFEST), field=MANIFEST),
    "a link to nowhere": Row(does=linked(VALUES, "/nonesuch"), field="values"),
    "a link to a device": Row(does=linked(VALUES, "/dev/zero"), field="values", says="regular"),
    ".. in a file's name": Row(
        does=named("../values.safetensors"), field="values.name", says="a plain file name"
    ),
    "an absolute file name": Row(
        does=named("/etc/passwd"), field="values.name", says="a plain file name"
    ),
    "a NUL in a file's name": Row(
        does=named("a\0b"), field="values.name", says="a plain file name"
    ),
    "a newer format": Row(
        does=replaced(MANIFEST, b'{"format": 6, "new": true}'), field="format", says="limit: 4 or 5"
    ),
    "a manifest that is a list nested 100,000 deep": Row(
        does=replaced(MANIFEST, b'{"format": 4, "x": ' + b"[" * 100_000), field=MANIFEST
    ),
    "a manifest that is no UTF-8": Row(
        does=replaced(MANIFEST, b'{"format": 4, "digest": "\xff\xfe"}'), field=MANIFEST
    ),
    "a round of -1": Row(does=said(round=-1), field="round", says=">= 0"),
    "data that ends before it begins": Row(
        does=said(
            data={"size": 0, "batch_size": 1, "epochs": 1, "seed": 0, "position": 9},
        ),
        field="data",
    ),
    "a pickle for values": Row(
        does=replaced(VALUES, pickle.dumps(Evil())), field="values", says="pickle"
    ),
    "a pickle for the manifest": Row(
        does=replaced(MANIFEST, pickle.dumps(Evil())), field=MANIFEST, says="pickle"
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_round(tmp_path, 4)


def contents(place: Path) -> dict[str, bytes | str]:
    return {
        path.name: str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in place.iterdir()
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_checkpoint_is_refused_and_left_alone(name: str, place: Path) -> None:
    row = ROWS[name]
    row.does(place)
    before = contents(place)
    with pytest.raises(CheckpointError) as caught:
        read(place)
    error = caught.value
    assert str(place) in str(error.where)
    assert error.field == row.field or not row.field
    assert row.says in str(error)
    assert contents(place) == before
    assert not Path(EVIL).exists()


BY_ITS_MANIFEST = [
    name for name, row in ROWS.items() if row.field.endswith("name") or row.field == MANIFEST
]
"""The rest is found by the workers, which read the files whole."""


@pytest.mark.parametrize("name", [*BY_ITS_MANIFEST, "a newer format", "a round of -1"])
def test_run_starts_nothing_to_resume_it(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = place.parent / "train.py"
    script.write_text("raise SystemExit('it ran')")
    ROWS[name].does(place)
    assert main(["run", "--resume", str(place), str(script)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "(field " in err
    assert "Traceback" not in err


def test_the_pickle_of_a_model_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.pt")
    (tmp_path / "train.py").write_text("")
    assert main(["run", "--resume", "model.pt", "train.py"]) == 2
    err = capsys.readouterr().err
    assert "pickle" in err
    assert "field resume" in err


MODELS = {
    "another optimizer": (model("sgd"), "optimizer", "adam there, sgd here"),
    "another dtype": (model(dtype="float64"), "parameters", "float64 here"),
    "a parameter less": (
        msgspec.structs.replace(model(), parameters=model().parameters[:-1]),
        "parameters",
        "no more here",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_another_model_is_named_with_its_difference(name: str, place: Path) -> None:
    here, field, says = MODELS[name]
    with pytest.raises(CheckpointError) as caught:
        check_same_model(read(place).model, here, place)
    assert caught.value.field == field
    assert says in caught.value.what
