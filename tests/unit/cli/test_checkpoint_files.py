"""``checkpoint list`` and ``checkpoint export``: what they print and exit with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import write_round
from tests.support.fake_api import FakeApi, job

Command = Callable[..., tuple[int, str, str]]
ROW = {"path": "/ckpt/round-00000120", "round": 120, "nbytes": 2048, "created_unix": 1.0}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as fake:
        fake.jobs["mnist"] = job("mnist")
        yield fake


def test_a_jobs_checkpoints_are_listed_by_a_daemon(api: FakeApi, elasticps: Command) -> None:
    bad = {
        "path": "/ckpt/.round-00000121.5.tmp",
        "round": 121,
        "nbytes": 0,
        "problem": "unfinished",
    }
    api.checkpoints["checkpoints"] = [bad, ROW]
    code, out, _ = elasticps("checkpoint", "list", "mnist")
    assert code == 0
    first, header, *rows = out.splitlines()
    assert first == "/ckpt on n1"
    assert header.split() == ["CHECKPOINT", "ROUND", "WHEN", "SIZE", "STATE"]
    assert rows[0].split() == [".round-00000121.5.tmp", "121", "-", "0", "B", "unfinished"]
    assert "1970-01-01 00:00 UTC" in rows[1]
    assert rows[1].rstrip().endswith("complete")


def test_a_directory_is_listed_without_a_daemon(
    api: FakeApi, elasticps: Command, tmp_path: Path
) -> None:
    api.close()
    write_round(tmp_path, 7)
    code, out, _ = elasticps("checkpoint", "list", tmp_path, "--verify", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["directory"] == str(tmp_path)
    assert [row["round"] for row in answer["checkpoints"]] == [7]


def test_a_bare_name_is_the_directory_here_that_has_checkpoints_as_it_is_for_export(
    api: FakeApi, elasticps: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.close()
    monkeypatch.chdir(tmp_path)
    write_round(tmp_path / "mnist", 7)
    for verify in ([], ["--verify"]):
        code, out, error = elasticps("checkpoint", "list", "mnist", *verify)
        assert code == 0, error
        assert out.startswith(str(tmp_path / "mnist"))
    assert elasticps("checkpoint", "export", "mnist", "w.safetensors")[0] == 0


def test_what_cannot_be_listed_is_an_error(
    api: FakeApi, elasticps: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, error = elasticps("checkpoint", "list", tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert "No such file or directory" in error
    api.checkpoints["problem"] = "cannot be read: Permission denied"
    code, _, error = elasticps("checkpoint", "list", "mnist")
    assert code == 1
    assert "/ckpt on n1: cannot be read: Permission denied" in error
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    code, _, error = elasticps("checkpoint", "list", "saved")
    assert code == 2
    assert "say ./saved" in error


def test_export_writes_a_file_and_refuses_to_overwrite_it(
    elasticps: Command, tmp_path: Path
) -> None:
    for number in (7, 20):
        write_round(tmp_path, number)
    out_file = tmp_path / "weights.safetensors"
    code, out, error = elasticps("checkpoint", "export", tmp_path, out_file)
    assert code == 0, error
    assert out.startswith(f"{out_file}: 3 tensors, ")
    assert "round 20 of job" in out
    code, out, error = elasticps("checkpoint", "export", tmp_path, out_file)
    assert (code, out) == (2, "")
    assert "--force" in error
    code, out, _ = elasticps("checkpoint", "export", tmp_path, out_file, "--force", "--json")
    assert code == 0
    assert json.loads(out)["round"] == 20


def test_export_of_a_job_is_of_its_newest_checkpoint(
    api: FakeApi, elasticps: Command, tmp_path: Path
) -> None:
    write_round(tmp_path / "saved", 20)
    out_file = tmp_path / "weights.safetensors"
    api.checkpoints["directory"] = str(tmp_path / "saved")
    code, out, error = elasticps("checkpoint", "export", "mnist", out_file)
    assert code == 0, error
    assert "round 20 of job" in out
    code, _, error = elasticps("checkpoint", "export", "other", out_file, "--force")
    assert code == 2
    assert "mnist" in error


def test_export_of_nothing_is_an_error_that_names_the_argument(
    elasticps: Command, tmp_path: Path
) -> None:
    code, _, error = elasticps("checkpoint", "export", tmp_path, tmp_path / "w.safetensors")
    assert code == 1
    assert "field checkpoint" in error
