"""Whose a directory for checkpoints is: one job's at a time.

``owner.json`` in it names the job, and the job's main worker holds a shared lock on that file as
long as it lives. Another job takes the directory over when nobody holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from elasticps.checkpoint.directory import check_unused, make_root, set_aside
from elasticps.core.ids import Round
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import CheckpointError

log = logging.getLogger(__name__)

OWNER = "owner.json"
MAX_OWNER_BYTES = 10_000
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks says. There the job that came last has the directory."""


class Owner(msgspec.Struct, frozen=True):
    """A job: its ``identity``, which no other job of any cluster has, and its name."""

    identity: str
    job: str


class Ownership:
    """One job's hold on the directory ``root``, which ends with ``close`` or with the process."""

    def __init__(self, root: Path, owner: Owner) -> None:
        self._root = root
        self._path = root / OWNER
        self._owner = owner
        self._lock = -1

    def begin(self, start: Round, damaged: Sequence[Path] = ()) -> None:
        """Take the directory for a job that begins at round ``start``; make it if it is not there.

        Checkpoints in it that are ``damaged`` are set aside.

        Raises CheckpointError where another job that lives has it, where there are checkpoints of
        rounds that the job is yet to come to, and where it cannot be used.
        """
        with self._opened() as descriptor:
            if _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                for path in damaged:
                    if path.parent == self._root:
                        log.warning("%s is now %s", path, set_aside(path))
                check_unused(self._root, start)
                self._write(descriptor)
            self._share(descriptor)

    def check(self) -> None:
        """Raise CheckpointError unless the directory is still this job's.

        One that nobody has is taken: it was removed, or is not the same on every machine.
        """
        try:
            found = owner_in(self._path.read_bytes()[:MAX_OWNER_BYTES])
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise unusable(error, self._root) from error
        if found is not None:
            require_same(found, self._owner, self._root)
        if found is None or self._lock < 0:
            with self._opened() as descriptor:
                if found is None and _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    self._write(descriptor)
                self._share(descriptor)

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        if self._lock >= 0:
            # A process that the script forked has the same lock, and must not keep it.
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The owner's file; closed again unless ``_share`` has kept it."""
        descriptor = -1
        try:
            make_root(self._root)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            yield descriptor
        except OSError as error:
            raise unusable(error, self._root) from error
        finally:
            if descriptor not in (-1, self._lock):
                os.close(descriptor)

    def _write(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(self._owner), 0)
        os.fsync(descriptor)

    def _share(self, descriptor: int) -> None:
        """Hold the directory by ``descriptor`` from now on, if it is this job's."""
        # Waits for no more than another's _write: nobody keeps the exclusive lock.
        _locked(descriptor, fcntl.LOCK_SH)
        found = owner_in(os.pread(descriptor, MAX_OWNER_BYTES, 0))
        require_same(found, self._owner, self._root)
        self.close()
        self._lock = descriptor


def require_same(found: Owner | None, owner: Owner, root: Path) -> None:
    """Raise CheckpointError where the directory is another job's."""
    if found is None or found.identity != owner.identity:
        raise CheckpointError(
            f"{_who(found, owner)} has its checkpoints here",
            where=str(root),
            field="checkpoint_dir",
            limit="one job at a time",
            hint="choose another directory, or wait until that job has ended",
        )


def _who(found: Owner | None, owner: Owner) -> str:
    if found is None:
        return "an unknown job"
    return f"job {found.job}" if found.job != owner.job else f"another job named {found.job}"


def unusable(error: OSError, root: Path) -> CheckpointError:
    """What to raise where the directory cannot be used."""
    return CheckpointError(
        f"cannot be used: {error.strerror}", where=str(root), field="checkpoint_dir"
    )


def owner_in(body: bytes) -> Owner | None:
    """None where it was cut off by a crash, and so is nobody's."""
    try:
        return msgspec.json.decode(body, type=Owner)
    except UNDECODABLE:
        return None


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
