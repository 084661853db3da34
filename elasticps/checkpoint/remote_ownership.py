"""Whose a URL for checkpoints is: one job's at a time, as far as can be seen in an object store.

``owner.json`` there names the job, and as long as the job's main worker lives it writes the file
anew every few seconds. Another job that finds it watches whether it changes, comparing no clocks.
Nothing there can be locked, or made only where it is not: so whoever takes the place looks once
more a moment later, and of two that came at once the one is refused whose claim was overwritten.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from elasticps.checkpoint.directory import check_unused, set_aside
from elasticps.checkpoint.ownership import (
    MAX_OWNER_BYTES,
    OWNER,
    Owner,
    Ownership,
    require_same,
    unusable,
)
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import Url
from elasticps.core.ids import Round
from elasticps.core.undecodable import UNDECODABLE

log = logging.getLogger(__name__)

BEAT_S = 10.0
WATCH_S = 2.5 * BEAT_S
LOOK_S = 1.0
SETTLE_S = 1.0
"""More than another takes from its last look at the place until its claim is there."""
CLOSE_S = 5.0


class Claim(Owner, frozen=True):
    """``held``: by a main worker that lives, or did when it wrote ``beat``, which counts."""

    held: bool = False
    beat: int = 0


class RemoteOwnership:
    """One job's claim to ``root``; the same calls as of an ``Ownership``."""

    def __init__(self, root: Path, owner: Owner) -> None:
        self._root = root
        self._owner = owner
        self._beat = 0
        self._closing = threading.Event()
        self._beating: threading.Thread | None = None

    def begin(self, start: Round, damaged: Sequence[Path] = ()) -> None:
        """Take the place for a job that begins at round ``start``.

        Checkpoints in it that are ``damaged`` are set aside. Raises CheckpointError where another
        job that lives has it, where there are checkpoints of rounds that the job is yet to come to,
        and where it cannot be used. It takes a second; where the place is a job's that has not let
        go of it, as long as it takes to see that nobody lives there.
        """
        try:
            dead = self._watched()
            for path in damaged:
                if path.parent == self._root:
                    log.warning("%s is now %s", path, set_aside(path))
            check_unused(self._root, start)
            self._take(dead)
        except OSError as error:
            raise unusable(error, self._root) from error
        self._go_on_beating()

    def check(self) -> None:
        """Raise CheckpointError unless the place is still this job's.

        One that nobody has is taken.
        """
        try:
            found = self._found()
            if found is not None:
                require_same(found, self._owner, self._root)
            if found is None or not found.held:
                self._write(held=True)
        except OSError as error:
            raise unusable(error, self._root) from error
        self._go_on_beating()

    def close(self) -> None:
        """Let go of the place, so that the next job need not watch it. Idempotent."""
        beating, self._beating = self._beating, None
        self._closing.set()
        if beating is None:
            return
        beating.join(CLOSE_S)
        try:
            found = self._found()
            if found is not None and found.identity == self._owner.identity:
                self._write(held=False)
        except OSError as error:
            log.warning("%s is not let go of: %s", self._root, error.strerror)

    # -- taking the place -----------------------------------------------------------------------

    def _watched(self) -> Claim | None:
        """Another's claim that is dead, if there is one. Raises where it lives."""
        first = self._found()
        if not self._is_anothers(first):
            return None
        assert first is not None
        log.warning(
            "%s is job %s's: looking for %g s whether that lives", self._root, first.job, WATCH_S
        )
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            now = self._found()
            if now != first:
                self._require_free(now)
                return None
        return first

    def _take(self, dead: Claim | None) -> None:
        before = self._found()
        if before != dead:
            self._require_free(before)
        if before is not None and before.identity != self._owner.identity:
            log.warning(
                "%s was job %s's: that job gets no more checkpoints into it",
                *(self._root, before.job),
            )
        self._write(held=True)
        time.sleep(SETTLE_S)
        require_same(self._found(), self._owner, self._root)

    def _require_free(self, found: Claim | None) -> None:
        if self._is_anothers(found):
            require_same(found, self._owner, self._root)

    def _is_anothers(self, found: Claim | None) -> bool:
        return found is not None and found.held and found.identity != self._owner.identity

    # -- keeping it -----------------------------------------------------------------------------

    def _go_on_beating(self) -> None:
        if self._beating is None and not self._closing.is_set():
            self._beating = threading.Thread(
                target=self._keep_beating, name="elasticps-owner", daemon=True
            )
            self._beating.start()

    def _keep_beating(self) -> None:
        while not self._closing.wait(BEAT_S):
            try:
                found = self._found()
                if found is not None and found.identity != self._owner.identity:
                    log.warning("%s is job %s's now", self._root, found.job)
                    return
                self._write(held=True)
            except OSError as error:
                log.info("%s is not said to be held: %s", self._root, error.strerror)

    def _found(self) -> Claim | None:
        try:
            with STORAGE.open(self._root / OWNER) as file:
                return msgspec.json.decode(file.read(MAX_OWNER_BYTES), type=Claim)
        except (FileNotFoundError, *UNDECODABLE):
            return None

    def _write(self, *, held: bool) -> None:
        self._beat += 1
        claim = Claim(self._owner.identity, self._owner.job, held, self._beat)
        STORAGE.create(self._root / OWNER, [msgspec.json.encode(claim)])


def ownership_of(root: Path, owner: Owner) -> Ownership | RemoteOwnership:
    """The hold that a job can have on a place of that kind."""
    return (RemoteOwnership if isinstance(root, Url) else Ownership)(root, owner)
