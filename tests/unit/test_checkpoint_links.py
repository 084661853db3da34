"""What did not change since the checkpoint before is not written again, nor ever lost by that."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from elasticps.checkpoint.directory import path_of
from elasticps.checkpoint.disk import OS_DISK
from elasticps.checkpoint.rehearsal import Rehearsal
from elasticps.checkpoint.tensor_file import Earlier, Row, bytes_of, read_tensors, write_rows
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError


def file_of(saved: Rehearsal, parameter: str, number: int) -> Path:
    blocks = saved.content(Round(number)).blocks
    name = next(row.file.name for row in blocks if row.parameter == parameter)
    return path_of(saved.root, Round(number)) / name


def rows(fill: float) -> list[Row]:
    tensor = torch.full((5,), fill)
    return [Row("value", tensor.dtype, tuple(tensor.shape), bytes_of(tensor))]


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    entry = write_rows(tmp_path / "earlier", rows(1.0))
    return Earlier(tmp_path / "earlier", entry.xxh128)


def test_the_same_bytes_are_linked_and_others_are_written(tmp_path: Path, earlier: Earlier) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    linked = write_rows(same, rows(1.0), earlier=earlier)
    assert (linked.name, linked.xxh128) == ("same", earlier.xxh128)
    entry = write_rows(other, rows(2.0), earlier=earlier)
    assert same.samefile(earlier.path)
    assert not other.samefile(earlier.path)
    assert torch.equal(read_tensors(tmp_path, entry, "other")["value"], torch.full((5,), 2.0))


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "a file system without links"])
def test_what_cannot_be_linked_is_written_whole(
    damage: str, tmp_path: Path, earlier: Earlier, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = earlier.path.read_bytes()
    if damage == "gone":
        earlier.path.unlink()
    elif damage == "cut":
        earlier.path.write_bytes(body[:-1])
    elif damage == "flipped":
        earlier.path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    else:

        def refused(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(OS_DISK, "link", refused)
    entry = write_rows(tmp_path / "new", rows(1.0), earlier=earlier)
    assert torch.equal(read_tensors(tmp_path, entry, "new")["value"], torch.full((5,), 1.0))
    assert (tmp_path / "new").stat().st_nlink == 1


def test_a_file_stays_as_long_as_any_checkpoint_that_is_kept_has_it(tmp_path: Path) -> None:
    saved = Rehearsal(OS_DISK, tmp_path)
    for number in (10, 20, 30):
        saved.write(Round(number))
    files = [file_of(saved, "still", number) for number in (10, 20, 30)]
    assert files[0].samefile(files[1])
    assert files[0].samefile(files[2])
    assert len(list(files[1].parent.iterdir())) == 4  # what was written of it has gone
    moving = [file_of(saved, "weight", number) for number in (10, 20)]
    assert not moving[0].samefile(moving[1])
    saved.prune(1)
    assert not files[0].exists()
    assert files[2].stat().st_nlink == 1
    assert saved.newest().round == 30


def test_a_file_that_was_damaged_is_not_in_the_checkpoints_after_that(tmp_path: Path) -> None:
    saved = Rehearsal(OS_DISK, tmp_path)
    saved.write(Round(10))
    saved.write(Round(20))
    path = file_of(saved, "still", 20)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    saved.write(Round(30))
    assert saved.content(Round(30)).round == 30
    with pytest.raises(CheckpointError, match="damaged"):
        saved.content(Round(20))
