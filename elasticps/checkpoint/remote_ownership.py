"""Whose a URL for checkpoints is: the job's that came last, for an object store has no locks.

``owner.json`` there names the job. One that has lost the place is told so at its next checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from elasticps.checkpoint.directory import check_unused, set_aside
from elasticps.checkpoint.ownership import (
    MAX_OWNER_BYTES,
    OWNER,
    Owner,
    Ownership,
    owner_in,
    require_same,
    unusable,
)
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import Url
from elasticps.core.ids import Round

log = logging.getLogger(__name__)


class RemoteOwnership:
    """One job's claim to ``root``; the same calls as of an ``Ownership``."""

    def __init__(self, root: Path, owner: Owner) -> None:
        self._root = root
        self._owner = owner

    def begin(self, start: Round, damaged: Sequence[Path] = ()) -> None:
        """Take the place for a job that begins at round ``start``.

        Checkpoints in it that are ``damaged`` are set aside. Raises CheckpointError where there are
        checkpoints of rounds that the job is yet to come to, and where it cannot be used.
        """
        try:
            for path in damaged:
                if path.parent == self._root:
                    log.warning("%s is now %s", path, set_aside(path))
            check_unused(self._root, start)
            before = self._found()
            if before is not None and before.identity != self._owner.identity:
                log.warning(
                    "%s was job %s's: that job gets no more checkpoints into it",
                    *(self._root, before.job),
                )
            self._write()
        except OSError as error:
            raise unusable(error, self._root) from error

    def check(self) -> None:
        """Raise CheckpointError unless the place is still this job's.

        One that nobody has is taken.
        """
        try:
            found = self._found()
            if found is None:
                self._write()
        except OSError as error:
            raise unusable(error, self._root) from error
        if found is not None:
            require_same(found, self._owner, self._root)

    def close(self) -> None:
        """There is no lock to let go of."""

    def _found(self) -> Owner | None:
        try:
            with STORAGE.open(self._root / OWNER) as file:
                return owner_in(file.read(MAX_OWNER_BYTES))
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        STORAGE.create(self._root / OWNER, [msgspec.json.encode(self._owner)])


def ownership_of(root: Path, owner: Owner) -> Ownership | RemoteOwnership:
    """The hold that a job can have on a place of that kind."""
    return (RemoteOwnership if isinstance(root, Url) else Ownership)(root, owner)
