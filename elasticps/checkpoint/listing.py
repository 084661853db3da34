"""What is in a directory of checkpoints, whole or not, and why not."""

from __future__ import annotations

from pathlib import Path

import msgspec

from elasticps.checkpoint.directory import LEFTOVER, NAME
from elasticps.checkpoint.integrity import check_sizes, check_whole
from elasticps.checkpoint.manifest import MANIFEST
from elasticps.checkpoint.storage import STORAGE
from elasticps.errors import CheckpointError

MOST = 1000
"""A directory has a few: more are another's doing, and the newest are listed."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One of a directory's. ``nbytes`` is what its files have on the disk; ``problem`` says why a
    job cannot go on from it.
    """

    path: str
    round: int
    nbytes: int
    created_unix: float | None = None
    job: str = ""
    problem: str = ""

    @property
    def complete(self) -> bool:
        return not self.problem


def list_checkpoints(place: Path, *, verify: bool = False) -> list[Listed]:
    """Those in ``place``, the newest first; ``place`` alone where that is a checkpoint itself.

    A file's size is held against its manifest, and with ``verify`` every bit. Raises
    CheckpointError when there is no such directory, or it cannot be read.
    """
    try:
        if STORAGE.is_file(place / MANIFEST):
            return [_listed(place, _number(place) or 0, verify)]
        names = [path for path in STORAGE.entries(place) if not STORAGE.is_file(path)]
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", where=str(place), field="directory"
        ) from error
    found = [(_number(path), path) for path in names]
    newest = sorted(((n, path) for n, path in found if n is not None), reverse=True)[:MOST]
    return [_listed(path, number, verify) for number, path in newest]


def _number(path: Path) -> int | None:
    match = NAME.fullmatch(path.name) or LEFTOVER.fullmatch(path.name)
    return int(match[1]) if match else None


def _listed(path: Path, number: int, verify: bool) -> Listed:
    row = Listed(path=str(path), round=number, nbytes=_size(path))
    if LEFTOVER.fullmatch(path.name):
        why = "unfinished: it is being written or removed, or who did that died"
        return msgspec.structs.replace(row, problem=why)
    try:
        manifest = check_whole(path) if verify else check_sizes(path)
    except CheckpointError as error:
        return msgspec.structs.replace(row, problem=_why(error, path))
    return msgspec.structs.replace(
        row, round=manifest.round, created_unix=manifest.created_unix, job=manifest.job
    )


def _why(error: CheckpointError, path: Path) -> str:
    name = Path(error.where).name if error.where and error.where != str(path) else ""
    return f"{name}: {error.what}" if name and name not in error.what else error.what


def _size(directory: Path) -> int:
    """Zero for what cannot be looked at, or has gone meanwhile."""
    try:
        return sum(STORAGE.sizes(directory).values())
    except OSError:
        return 0
