"""The directory that a job's checkpoints are in: which are complete, which one is the newest."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.integrity import is_whole
from elasticps.checkpoint.manifest import MANIFEST, refuse_pickle
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import Url
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError

NAME = re.compile(r"round-([0-9]{8,})")
LEFTOVER = re.compile(r"\.round-([0-9]{8,})\..+\.tmp")


def path_of(root: Path, number: Round) -> Path:
    """Where the checkpoint of a round is, once it is whole."""
    return root / f"round-{number:08d}"


def draft_path_of(root: Path, number: Round) -> Path:
    """Where the checkpoint of a round is made. What is at a URL cannot be renamed: there it is
    made in its own place, and is none before its manifest is there."""
    return path_of(root, number) if isinstance(root, Url) else temporary_path_of(root, number)


def temporary_path_of(root: Path, number: Round) -> Path:
    """Where a checkpoint of a round is made, or taken apart: by whom asks, and nobody else."""
    return root / f".round-{number:08d}.{secrets.token_hex(4)}.tmp"


def complete(root: Path, *, disk: Disk = STORAGE) -> list[tuple[Round, Path]]:
    """The complete checkpoints in ``root``, the newest first; none where there is no ``root``."""
    if not disk.exists(root):
        return []
    found = [
        (Round(int(match[1])), path)
        for path in disk.entries(root)
        if (match := NAME.fullmatch(path.name)) and disk.is_file(path / MANIFEST)
    ]
    return sorted(found, reverse=True)


def newest(place: Path, *, disk: Disk = STORAGE) -> Path:
    """The newest complete checkpoint in ``place``, or ``place`` where that is a checkpoint itself.

    Raises CheckpointError when there is none.
    """
    try:
        if disk.is_file(place):
            with disk.open(place) as file:
                refuse_pickle(file.read(9), place, "resume")
            raise CheckpointError("a checkpoint is a directory", where=str(place), field="resume")
        if disk.is_file(place / MANIFEST):
            return place
        found = complete(place, disk=disk)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", where=str(place), field="resume"
        ) from error
    if not found:
        raise CheckpointError(
            "there is no complete checkpoint here",
            where=str(place),
            field="resume",
            limit=f"a directory with {MANIFEST}, or with such directories named round-<number>",
        )
    return found[0][1]


def candidates(place: Path) -> list[Path]:
    """The checkpoints that a job may go on from, the newest first: ``place`` alone where that is
    one itself. Raises CheckpointError when there is none.
    """
    first = newest(place)
    return [first] if first == place else [path for _, path in complete(place)]


def set_aside(damaged: Path) -> Path:
    """Give a checkpoint that cannot be read a name that is no checkpoint's. Raises OSError."""
    aside = damaged.with_name(f"damaged-{damaged.name}")
    number = 1
    while STORAGE.exists(aside):
        number += 1
        aside = damaged.with_name(f"damaged-{damaged.name}.{number}")
    STORAGE.rename(damaged, aside)
    STORAGE.sync_directory(damaged.parent)
    return aside


def make_root(root: Path, *, disk: Disk = STORAGE) -> None:
    """Make the directory for checkpoints and those above it, durably. Raises OSError."""
    if isinstance(root, Url):
        disk.make_directories(root)
        return
    made = [path for path in (root, *root.parents) if path == root or not disk.exists(path)]
    disk.make_directories(root)
    for path in made:
        disk.sync_directory(path.parent)


def check_unused(root: Path, start: Round) -> None:
    """Make ``root`` if it is not there. Raise CheckpointError where it cannot hold checkpoints, or
    has some of rounds that the job is yet to come to.

    Those are another run's, and would be taken for this one's newest.
    """
    try:
        make_root(root)
        found = complete(root)
    except OSError as error:
        raise CheckpointError(
            f"cannot be used: {error.strerror}", where=str(root), field="checkpoint_dir"
        ) from error
    if not isinstance(root, Url) and not os.access(root, os.W_OK | os.X_OK):
        raise CheckpointError("cannot be written", where=str(root), field="checkpoint_dir")
    if found and found[0][0] > start:
        raise CheckpointError(
            f"there is a checkpoint of round {found[0][0]} here, and this job begins at {start}",
            where=str(root),
            field="checkpoint_dir",
            hint=_way_on(root, start, [path for number, path in found if number > start]),
        )


def _way_on(root: Path, start: Round, later: list[Path]) -> str:
    """What to do about checkpoints that are later than a job's ``start``."""
    damaged = [path for path in later if not is_whole(path)]
    if later[0] in damaged:
        return f"damaged: move {_listed(damaged)} away first, or choose another directory"
    back = f", move {_listed(later)} away to go back to round {start}" if start else ""
    return f"go on from it with --resume {root}{back}, or choose another directory"


def _listed(paths: list[Path]) -> str:
    return " and ".join(map(str, paths))


def point_to_older(error: CheckpointError, directory: Path) -> None:
    """Let the ``error`` of a damaged checkpoint name the next older one that is whole, if any."""
    older = _older_whole(directory)
    if error.hint is None and older is not None:
        error.hint = (
            f"go on from the one before it that is whole with --resume {older};"
            f" to write to {directory.parent} again, move {directory} away first"
        )


def _older_whole(directory: Path) -> Path | None:
    try:
        there = [path for _, path in complete(directory.parent)]
    except OSError:  # one that was named, in a directory that may not be listed
        return None
    older = there[there.index(directory) + 1 :] if directory in there else []
    return next(filter(is_whole, older), None)


def remove_leftovers(root: Path, *, disk: Disk = STORAGE) -> None:
    """Remove what writers that died have left behind; ``prune`` does at a URL."""
    if isinstance(root, Url):
        return
    for path in disk.entries(root):
        if LEFTOVER.fullmatch(path.name):
            disk.remove_tree(path)


def _remove_unfinished(root: Path, newest_number: Round, disk: Disk) -> None:
    """Remove what has no manifest and is older than the newest checkpoint.

    The newer may be made by another process just now.
    """
    for path in disk.entries(root):
        match = NAME.fullmatch(path.name)
        if match and int(match[1]) < newest_number and not disk.is_file(path / MANIFEST):
            disk.remove_tree(path)


def prune(root: Path, keep: int, *, made: Round | None = None, disk: Disk = STORAGE) -> None:
    """Remove all complete checkpoints but the ``keep`` newest. Raises CheckpointError.

    ``made`` is the round of the job's newest: later ones are another's, and do not count. Each that
    is removed leaves its name first: one that is half removed is never taken for a checkpoint.
    """
    assert keep >= 1
    try:
        there = [row for row in complete(root, disk=disk) if made is None or row[0] <= made]
        for number, path in there[keep:]:
            if isinstance(root, Url):
                disk.remove_tree(path / MANIFEST)
                continue
            leaving = temporary_path_of(root, number)
            disk.rename(path, leaving)
            disk.sync_directory(root)
            disk.remove_tree(leaving)
        if isinstance(root, Url) and there:
            _remove_unfinished(root, there[0][0], disk)
    except OSError as error:
        raise CheckpointError(
            f"an old checkpoint cannot be removed: {error.strerror}",
            where=str(error.filename or root),
            field="checkpoint_dir",
        ) from error
