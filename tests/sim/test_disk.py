"""The simulated disk: what was synced is there after a power cut, the rest may be, or in part."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from elasticps.sim.disk import Disk, PowerCut

TOP = Path("/")
PLACE = TOP / "place"
FILE = PLACE / "file"
BODY = b"what was written"


def disks() -> Iterator[Disk]:
    """Many that differ in what chance takes, each with a durable and empty ``PLACE``."""
    for seed in range(200):
        disk = Disk(Random(seed))
        disk.make_directory(PLACE)
        disk.sync_directory(TOP)
        yield disk


def content(disk: Disk, path: Path = FILE) -> bytes | None:
    if not disk.exists(path):
        return None
    with disk.open(path) as file:
        return file.read()


def names(disk: Disk) -> frozenset[str]:
    return frozenset(path.name for path in disk.entries(PLACE))


def test_a_synced_file_under_a_synced_name_is_there_to_the_bit() -> None:
    for disk in disks():
        disk.create(FILE, [BODY[:5], memoryview(BODY)[5:]])
        disk.sync_directory(PLACE)
        disk.restart()
        assert content(disk) == BODY


def test_a_name_that_was_not_synced_is_lost_or_kept_with_its_whole_file() -> None:
    seen = set()
    for disk in disks():
        disk.create(FILE, [BODY])
        assert content(disk) == BODY
        disk.restart()
        seen.add(content(disk))
    assert seen == {None, BODY}


def test_a_file_that_was_not_synced_is_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "sync_file", lambda self, path: None)
    seen = set()
    for disk in disks():
        disk.create(FILE, [BODY])
        disk.sync_directory(PLACE)
        disk.restart()
        seen.add(content(disk))
    assert {b"", BODY, BODY[:3], BODY[:3].ljust(len(BODY), b"\0")} <= seen
    assert all(BODY.startswith((each or b"").rstrip(b"\0")) for each in seen)


def test_each_change_of_names_is_lost_or_kept_on_its_own() -> None:
    seen = set()
    for disk in disks():
        for name in ("a", "b"):
            disk.create(PLACE / name, [])
        disk.sync_directory(PLACE)
        disk.remove_tree(PLACE / "a")
        disk.rename(PLACE / "b", PLACE / "c")
        disk.create(PLACE / "d", [])
        disk.restart()
        seen.add(names(disk))
    kept_a, kept_b, lost_d = ({"a"}, set()), ({"b"}, {"c"}), ({"d"}, set())
    assert seen == {frozenset(a | b | d) for a in kept_a for b in kept_b for d in lost_d}


def test_what_a_power_cut_left_is_left_by_the_next_one_too() -> None:
    for disk in disks():
        disk.create(FILE, [BODY])
        disk.restart()
        left = content(disk)
        disk.restart()
        assert content(disk) == left


def test_a_removed_tree_may_come_back_without_some_of_its_files() -> None:
    tree = PLACE / "tree"
    seen = set()
    for disk in disks():
        disk.make_directory(tree)
        for name in ("a", "b"):
            disk.create(tree / name, [BODY])
        disk.sync_directory(tree)
        disk.sync_directory(PLACE)
        disk.remove_tree(tree)
        disk.restart()
        seen.add(frozenset(disk.entries(tree)) if disk.exists(tree) else None)
    assert len(seen) == 5


def test_nothing_happens_from_the_step_of_the_power_cut_on() -> None:
    lengths = []
    for last in range(4):
        disk = next(disks())
        disk.cut_at = disk.steps + last
        with pytest.raises(PowerCut):
            disk.create(FILE, [BODY[:5], BODY[5:]])
        with pytest.raises(PowerCut):
            disk.remove_tree(PLACE, ignore_errors=True)
        lengths.append(len(content(disk) or b""))
    assert lengths == [0, 0, 5, len(BODY)]


def test_what_an_operating_system_refuses_is_refused() -> None:
    disk = next(disks())
    disk.create(FILE, [BODY])
    disk.make_directories(PLACE / "more" / "still")
    disk.make_directories(PLACE / "more" / "still")
    refused = [
        (lambda: disk.make_directory(PLACE), errno.EEXIST),
        (lambda: disk.create(FILE, []), errno.EEXIST),
        (lambda: disk.create(TOP / "none" / "file", []), errno.ENOENT),
        (lambda: disk.open(TOP / "none"), errno.ENOENT),
        (lambda: disk.open(PLACE), errno.EISDIR),
        (lambda: disk.entries(FILE), errno.ENOTDIR),
        (lambda: disk.rename(PLACE / "none", PLACE / "other"), errno.ENOENT),
        (lambda: disk.rename(FILE, PLACE / "more"), errno.ENOTEMPTY),
        (lambda: disk.remove_tree(PLACE / "none"), errno.ENOENT),
        (lambda: disk.sync_directory(TOP / "none"), errno.ENOENT),
    ]
    for act, code in refused:
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == code
    disk.remove_tree(PLACE / "none", ignore_errors=True)


def test_a_trace_does_not_say_which_process_it_was() -> None:
    disk = Disk(Random(0))
    for process in (4, 123):
        disk.make_directory(TOP / f".round-7.{process}.tmp")
    one, other = (line.split(maxsplit=1)[1] for line in disk.trace)
    assert one == other == "make /.round-7.tmp"
    assert all(int(a.split()[0]) + 1 == int(b.split()[0]) for a, b in pairwise(disk.trace))
