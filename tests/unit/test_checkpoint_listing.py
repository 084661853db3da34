"""What is listed of a directory of checkpoints: the newest first, and why one is not complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from elasticps.checkpoint.listing import list_checkpoints
from elasticps.errors import CheckpointError
from tests.support.checkpoints import write_round


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in (7, 20, 28):
        write_round(tmp_path, number)
    return tmp_path


def damage(path: Path, offset: int = -1) -> None:
    body = bytearray(path.read_bytes())
    body[offset] ^= 1
    path.write_bytes(body)


def test_the_newest_comes_first_with_its_round_time_and_bytes(root: Path) -> None:
    rows = list_checkpoints(root)
    assert [row.round for row in rows] == [28, 20, 7]
    assert [row.problem for row in rows] == ["", "", ""]
    assert all(row.job == "job" and row.created_unix for row in rows)
    on_disk = sum(path.stat().st_size for path in (root / "round-00000028").iterdir())
    assert rows[0].nbytes == on_disk


def test_a_checkpoint_itself_is_listed_alone(root: Path) -> None:
    (row,) = list_checkpoints(root / "round-00000020")
    assert (row.round, row.complete) == (20, True)


def test_what_is_not_complete_says_why(root: Path) -> None:
    (root / "round-00000028" / "values.safetensors").unlink()
    (root / "round-00000020" / "manifest.json").unlink()
    cut = root / "round-00000007" / "optimizer.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (root / ".round-00000029.99.tmp").mkdir()
    (root / "notes.txt").write_text("another's")
    (root / "round-x").mkdir()
    problems = {row.round: row.problem for row in list_checkpoints(root)}
    assert list(problems) == [29, 28, 20, 7]
    assert "unfinished" in problems[29]
    assert problems[28] == "values.safetensors is missing"
    assert "manifest.json: cannot be read: No such file" in problems[20]
    assert "optimizer.safetensors has" in problems[7]


def test_a_damaged_bit_is_found_when_asked_to_verify(root: Path) -> None:
    damage(root / "round-00000028" / "values.safetensors")
    assert [row.complete for row in list_checkpoints(root)] == [True, True, True]
    verified = list_checkpoints(root, verify=True)
    assert [row.complete for row in verified] == [False, True, True]
    assert "values.safetensors: the file is damaged" in verified[0].problem


def test_a_directory_that_is_not_there_is_an_error_and_an_empty_one_has_none(
    tmp_path: Path,
) -> None:
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match="No such file"):
        list_checkpoints(tmp_path / "nothing")
