"""A checkpoint is the whole old one or the whole new one, whenever its writer dies."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elasticps.checkpoint.directory import check_unused, complete, newest, prune
from elasticps.checkpoint.disk import OS_DISK
from elasticps.checkpoint.draft import Draft
from elasticps.checkpoint.snapshot import Snapshot, read, write
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError
from tests.support.checkpoints import VERSION, assert_same, snapshot, write_round

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path) -> None:
    made = snapshot(7)
    place = write(tmp_path / "new" / "place", made, version=VERSION)
    assert place.name == "round-00000007"
    assert sorted(path.name for path in place.iterdir()) == [
        "manifest.json",
        "optimizer.safetensors",
        "values.safetensors",
    ]
    assert_same(read(place), made)


def test_files_are_what_other_tools_read(tmp_path: Path) -> None:
    made = snapshot(7)
    place = write(tmp_path, made, version=VERSION)
    values = load_file(place / "values.safetensors")
    assert values.keys() == made.values.keys()
    assert all(torch.equal(value, made.values[name]) for name, value in values.items())
    state = load_file(place / "optimizer.safetensors")
    assert state["0.weight/step"] == 7
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["round"], manifest["job"], manifest["elasticps"]) == (7, "job", VERSION)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.long), 4])
def test_a_writer_killed_at_any_line_leaves_the_whole_old_or_the_whole_new_one(
    tmp_path: Path, step: int
) -> None:
    program = [sys.executable, "-m", "tests.support.killed_checkpoint", str(tmp_path), str(step)]
    subprocess.run(program, cwd=ROOT, check=True, timeout=110)
    outcomes: list[tuple[int, ...]] = []
    for line in sorted(int(path.name) for path in tmp_path.iterdir()):
        root = tmp_path / str(line)
        found = complete(root)
        for number, place in found:
            assert_same(read(place), snapshot(number))
        outcomes.append(tuple(number for number, _ in found))
    assert len(outcomes) > 100 / step
    stages = [outcome for outcome, _ in groupby(outcomes)]
    assert stages == [(10,), (20, 10), (20,)]


def test_the_next_write_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    left = tmp_path / ".round-00000009.123.tmp"
    left.mkdir()
    (left / "values.safetensors").write_bytes(b"half")
    theirs = tmp_path / "notes.tmp"
    theirs.write_text("the user's own")
    assert complete(tmp_path) == []
    write_round(tmp_path, 10)
    assert not left.exists()
    assert theirs.exists()


def test_every_file_is_on_disk_before_its_directory_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append(("fsync", "temporary" if path.name.endswith(".tmp") else path.name))

    def recorded_rename(source: Path, target: Path) -> None:
        rename(source, target)
        calls.append(("rename", Path(target).name))

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    write_round(tmp_path / "root", 5)
    assert calls == [
        ("fsync", tmp_path.name),
        ("fsync", "values.safetensors"),
        ("fsync", "optimizer.safetensors"),
        ("fsync", "manifest.json"),
        ("fsync", "temporary"),
        ("rename", "round-00000005"),
        ("fsync", "root"),
    ]


def test_a_write_that_finds_no_space_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    write_round(tmp_path, 10)
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from tests.support.checkpoints import write_round\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "write_round(Path(sys.argv[1]), 20)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CheckpointError" in ended.stderr
    assert os.strerror(errno.EFBIG) in ended.stderr
    assert "checkpoint_dir" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000010"]
    assert_same(read(newest(tmp_path)), snapshot(10))


@pytest.mark.parametrize("failing", range(6))
def test_an_error_of_any_fsync_is_told_and_harms_no_checkpoint(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_round(tmp_path, 10)
    real, calls = os.fsync, iter(range(100))

    def fsync(descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_round(tmp_path, 20)
    # Only the last one comes when the new name is there already.
    names = ["round-00000010", "round-00000020"] if failing == 5 else ["round-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for number, place in complete(tmp_path):
        assert_same(read(place), snapshot(number))


@pytest.mark.parametrize(("directory", "file"), [(0o2770, 0o660), (0o700, 0o600), (0o755, 0o644)])
def test_a_block_may_be_read_by_who_may_read_its_directory_whatever_the_servers_umask(
    directory: int, file: int, tmp_path: Path
) -> None:
    place = tmp_path / "draft"
    place.mkdir()
    place.chmod(directory)
    before = os.umask(0o077)
    try:
        OS_DISK.write(place / "block", [b"numbers"])
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "block").stat().st_mode) == file


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written") as caught:
        write_round(tmp_path / "file" / "root", 1)
    assert caught.value.field == "checkpoint_dir"


def test_a_round_is_written_once(tmp_path: Path) -> None:
    write_round(tmp_path, 5)
    with pytest.raises(CheckpointError, match="there is one already"):
        write(tmp_path, snapshot(5, scalar=0.5), version=VERSION)
    assert_same(read(newest(tmp_path)), snapshot(5))


@pytest.mark.parametrize("scalar", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_refused_before_there_is_a_checkpoint(
    scalar: float, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path, snapshot(5, scalar=scalar), version=VERSION)
    assert (caught.value.field, caught.value.limit) == ("mu", "finite")
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    made = snapshot(5)
    odd = Snapshot(
        job="job",
        owner="1d",
        round=Round(5),
        model=made.model,
        data=None,
        values={**made.values, "odd": torch.zeros(2, dtype=torch.complex128)},
        state={},
    )
    with pytest.raises(CheckpointError, match="complex128") as caught:
        write(tmp_path, odd, version=VERSION)
    assert caught.value.field == "odd"
    assert list(tmp_path.iterdir()) == []


def test_the_newest_ones_stay_and_the_older_go(tmp_path: Path) -> None:
    for number in (5, 100_000_000, 9, 10):
        write_round(tmp_path, number)
    (tmp_path / "round-00000001").mkdir()  # without a manifest: not ours to judge
    prune(tmp_path, keep=2)
    assert [number for number, _ in complete(tmp_path)] == [100_000_000, 10]
    prune(tmp_path, keep=2)
    prune(tmp_path, keep=1)
    assert newest(tmp_path) == tmp_path / "round-100000000"
    assert (tmp_path / "round-00000001").exists()


def test_a_directory_with_rounds_that_are_yet_to_come_is_not_written_to(tmp_path: Path) -> None:
    check_unused(tmp_path / "none", Round(0))
    write_round(tmp_path, 10)
    check_unused(tmp_path, Round(10))
    with pytest.raises(CheckpointError) as caught:
        check_unused(tmp_path, Round(9))
    assert caught.value.field == "checkpoint_dir"
    assert f"--resume {tmp_path}" in str(caught.value)
    assert f"move {tmp_path / 'round-00000010'} away" in str(caught.value)


def test_damaged_checkpoints_of_later_rounds_are_to_be_moved_away(tmp_path: Path) -> None:
    write_round(tmp_path, 9)
    for number in (10, 11):
        (write_round(tmp_path, number) / "values.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        check_unused(tmp_path, Round(9))
    hint = str(caught.value.hint)
    assert "--resume" not in hint
    for number in (10, 11):
        assert str(tmp_path / f"round-000000{number}") in hint
        (tmp_path / f"round-000000{number}").rename(tmp_path / f"damaged-{number}")
    check_unused(tmp_path, Round(9))


def test_two_main_workers_never_make_a_round_in_one_place(tmp_path: Path) -> None:
    old, new = Draft(tmp_path, Round(4)), Draft(tmp_path, Round(4))
    old.begin()
    new.begin()
    old.drop()
    assert new.directory.is_dir()
    assert not old.directory.exists()
