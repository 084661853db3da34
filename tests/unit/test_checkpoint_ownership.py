"""A directory for checkpoints is one job's at a time, and the next one's when that has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest

from elasticps.checkpoint.ownership import OWNER, Owner, Ownership
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError
from tests.support.checkpoints import write_round

ROOT = Path(__file__).resolve().parents[2]
HOLDS = """
import sys
from pathlib import Path
from elasticps.checkpoint.ownership import Owner, Ownership
held = Ownership(Path(sys.argv[1]), Owner("a", "job-a"))
held.begin(0)
print("held", flush=True)
sys.stdin.read()
"""


def ownership(root: Path, name: str) -> Ownership:
    return Ownership(root, Owner(name, f"job-{name}"))


@pytest.fixture
def a(tmp_path: Path) -> Iterator[Ownership]:
    with closing(ownership(tmp_path / "saved", "a")) as made:
        yield made


@pytest.fixture
def b(tmp_path: Path) -> Iterator[Ownership]:
    with closing(ownership(tmp_path / "saved", "b")) as made:
        yield made


def test_a_living_jobs_directory_is_refused(a: Ownership, b: Ownership) -> None:
    a.begin(Round(0))
    with pytest.raises(CheckpointError, match="job job-a has its checkpoints here") as caught:
        b.begin(Round(0))
    assert (caught.value.field, caught.value.limit) == ("checkpoint_dir", "one job at a time")
    assert caught.value.hint is not None
    a.check()


def test_an_ended_jobs_directory_is_the_next_ones(a: Ownership, b: Ownership) -> None:
    a.begin(Round(0))
    a.close()
    b.begin(Round(0))
    b.check()
    with pytest.raises(CheckpointError, match="job-b"):
        a.check()
    b.check()


def test_a_job_keeps_its_directory_when_its_main_worker_changes(tmp_path: Path) -> None:
    first, second = ownership(tmp_path, "a"), ownership(tmp_path, "a")
    first.begin(Round(0))
    second.check()
    first.close()
    with closing(second), pytest.raises(CheckpointError):
        ownership(tmp_path, "b").begin(Round(0))


def test_a_job_that_went_on_elsewhere_leaves_the_directory_to_who_took_it(
    a: Ownership, b: Ownership
) -> None:
    a.begin(Round(0))
    a.close()  # its main worker has died, and another is yet to come
    b.begin(Round(0))
    b.close()
    with pytest.raises(CheckpointError, match="job-b"):
        a.check()


def test_a_killed_jobs_directory_is_free(tmp_path: Path, b: Ownership) -> None:
    root = tmp_path / "saved"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, root],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError):
            b.begin(Round(0))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    b.begin(Round(0))


def test_rounds_that_are_yet_to_come_are_in_the_way_and_change_no_owner(
    a: Ownership, b: Ownership, tmp_path: Path
) -> None:
    a.begin(Round(0))
    write_round(tmp_path / "saved", 10)
    a.close()
    with pytest.raises(CheckpointError, match="round 10"):
        b.begin(Round(9))
    a.check()
    a.close()
    b.begin(Round(10))


@pytest.mark.parametrize("torn", [b"", b'{"identity": "b', b"\xff", b"[]"])
def test_an_owner_that_a_crash_cut_off_is_nobody(torn: bytes, a: Ownership, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / OWNER).write_bytes(torn)
    a.check()
    assert b'"job-a"' in (tmp_path / "saved" / OWNER).read_bytes()


def test_a_directory_that_was_removed_is_made_again(a: Ownership, tmp_path: Path) -> None:
    a.begin(Round(0))
    (tmp_path / "saved").rename(tmp_path / "moved")
    a.check()
    assert (tmp_path / "saved" / OWNER).is_file()


def test_without_locks_the_last_that_came_has_the_directory(
    a: Ownership, b: Ownership, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    a.begin(Round(0))
    b.begin(Round(0))
    b.check()
    with pytest.raises(CheckpointError, match="job-b"):
        a.check()


def test_what_cannot_be_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for act in (lambda it: it.begin(Round(0)), Ownership.check):
        with pytest.raises(CheckpointError, match="cannot be used") as caught:
            act(ownership(tmp_path / "file", "a"))
        assert caught.value.field == "checkpoint_dir"
