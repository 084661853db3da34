"""What a job may bring with it: what of it elasticps's own code would obey is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elasticps.daemon.http.jobs import next_number
from elasticps.daemon.http.submission import SCRIPTS_OWN, JobBody, check_submission
from elasticps.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "train.py").write_text("")
    (tmp_path / "elsewhere.py").write_text("")
    return tmp_path / "work"


def check(folder: Path, **fields: Any) -> None:
    check_submission(JobBody(**{"argv": ("train.py",), "cwd": str(folder)} | fields))


@pytest.mark.parametrize(
    "env",
    [
        {"OMP_NUM_THREADS": "4", "MALLOC_ARENA_MAX": "1", "LD": "x", "CUDA_VISIBLE_DEVICES": "0"},
        dict.fromkeys(SCRIPTS_OWN, "1"),
        {"LD_PRELOAD": "", "PYTHONHOME": ""},
    ],
    ids=["script's", "python's", "taken-away"],
)
def test_variables_that_a_script_may_need_are_taken(folder: Path, env: dict[str, str]) -> None:
    check(folder, env=env)


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_AUDIT",
        "LD_LIBRARY_PATH",
        "ELASTICPS_WORKER",
        "PYTHONHOME",
        "PYTHONINSPECT",
    ],
)
def test_variables_that_change_our_own_code_are_refused_by_name(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        check(folder, env={name: "x"})
    assert caught.value.field == "env"


def test_a_script_by_its_absolute_path_may_lie_anywhere(folder: Path) -> None:
    check(folder, argv=(str(folder.parent / "elsewhere.py"),))
    link = folder / "current.py"
    link.symlink_to(folder.parent / "elsewhere.py")
    check(folder, argv=(str(link),))


def test_a_relative_script_stays_in_its_folder_though_the_folder_is_a_link(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    check(link)
    (folder / "alias.py").symlink_to("train.py")
    check(link, argv=("./alias.py",))
    for script in ("../elsewhere.py", "../work/../elsewhere.py"):
        with pytest.raises(UsageError, match="leads out of") as caught:
            check(link, argv=(script,))
        assert caught.value.field == "argv"


@pytest.mark.parametrize(
    ("names", "number"),
    [
        ([], 1),
        (["other-7", "train", "train-", "train-x", "train-01", "train-2-3", "train-99999999"], 1),
        (["train-1", "train-3"], 4),  # the second one is forgotten
        (["train-9", "train-10"], 11),
    ],
)
def test_a_job_without_a_name_has_a_number_above_all_that_are_there(
    names: list[str], number: int
) -> None:
    assert next_number("train", names) == number
