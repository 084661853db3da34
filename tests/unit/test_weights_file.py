"""Weights in a file become a checkpoint that a job can begin with; nothing in the file is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from elasticps.checkpoint.manifest import check_same_model
from elasticps.checkpoint.snapshot import read
from elasticps.checkpoint.weights_file import import_weights
from elasticps.cli.main import main
from elasticps.core.blocks import Model, Parameter
from elasticps.errors import CheckpointError


def weights() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


def trained(shape: tuple[int, ...] = (2, 3)) -> Model:
    rows = (
        Parameter(name="0.bias", shape=(2,), dtype="float32"),
        Parameter(name="0.weight", shape=shape, dtype="float32"),
    )
    return Model(parameters=rows, optimizer="adam", groups=({},))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "nested.pt"])
def test_a_file_of_weights_is_what_a_job_begins_with(name: str, tmp_path: Path) -> None:
    file, made = tmp_path / name, weights()
    if name == "w.safetensors":
        save_file(made, file)
    else:
        torch.save({"epoch": 3, "state_dict": made} if name == "nested.pt" else made, file)
    imported = import_weights(file, tmp_path / "start", version="0")
    place = Path(imported.path)
    found = read(place)
    assert (found.round, imported.tensors, found.state) == (0, len(made), {})
    assert all(torch.equal(found.values[key], item) for key, item in made.items())
    check_same_model(found.model, trained(), place)
    with pytest.raises(CheckpointError, match=r"0.weight \[2, 3\] float32 there"):
        check_same_model(found.model, trained((3, 2)), place)


class Evil:
    def __reduce__(self) -> object:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("what", ["code", "number", "cut", "missing", "name"])
def test_what_is_no_file_of_weights_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ("w.txt" if what == "name" else "w.pt")
    contents = {"code": {"w": Evil()}, "number": {"w": 3}, "cut": weights(), "name": weights()}
    if what in contents:
        torch.save(contents[what], file)
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    assert main(["checkpoint", "import", str(file), "start"]) == 1
    assert "field file" in capsys.readouterr().err
    assert not Path("ran").exists()
    assert not Path("start").exists()


def test_what_a_checkpoint_cannot_hold_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = {
        "_extra_state": None,
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.zeros(2, device="meta"),
        "wide": torch.zeros(2, dtype=torch.complex128),
        3: torch.zeros(1),
    }
    kept = {
        **weights(),
        "turned": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "small": torch.ones(2).to(torch.float8_e5m2),
    }
    torch.save({**odd, **kept}, "w.pt")
    assert main(["checkpoint", "import", "w.pt", "start"]) == 0
    said = capsys.readouterr().err
    assert all(f"{name} (" in said for name in odd)
    values = read(tmp_path / "start" / "round-00000000").values
    assert values.keys() == kept.keys()
    assert torch.equal(values["turned"], kept["turned"])
    torch.save(odd, "odd.pt")
    assert main(["checkpoint", "import", "odd.pt", "none"]) == 1
    assert "no tensor in it" in capsys.readouterr().err
    assert not Path("none").exists()


def test_a_wrappers_prefix_is_taken_from_all_names_unless_they_are_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(
        {f"module._orig_mod.{name}": item for name, item in weights().items()}, "w.safetensors"
    )
    assert main(["checkpoint", "import", "w.safetensors", "start"]) == 0
    assert "without module._orig_mod. here" in capsys.readouterr().err
    place = tmp_path / "start" / "round-00000000"
    check_same_model(read(place).model, trained(), place)
    assert main(["checkpoint", "import", "w.safetensors", "kept", "--keep-names"]) == 0
    place = tmp_path / "kept" / "round-00000000"
    with pytest.raises(CheckpointError, match=r"have no 0.bias, 0.weight") as caught:
        check_same_model(read(place).model, trained(), place)
    assert "module._orig_mod.0.weight" in str(caught.value.limit)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the file is empty"),
        (b"hello world", "torch.save has not written this"),
        (None, "object of torch.nn.modules.linear.Linear"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_a_plain_reason(
    body: bytes | None, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "w.pt"
    torch.save(nn.Linear(2, 2), file) if body is None else file.write_bytes(body)
    with pytest.raises(CheckpointError, match=says) as caught:
        import_weights(file, tmp_path / "start", version="0")
    assert "[1m" not in str(caught.value)
    assert not (tmp_path / "start").exists()
