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
