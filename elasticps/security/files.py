"""Files that hold secrets, and files that are read anew when they change."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from elasticps.errors import ElasticError, UsageError

log = logging.getLogger(__name__)

PRIVATE = 0o600
OTHERS = 0o027
"""What may not be allowed: to the group to change it, to all others anything."""
MAX_BYTES = 1 << 20

Loaded = TypeVar("Loaded")


def read_file(path: Path, field: str) -> bytes:
    """The bytes of a file that the configuration names. Raises UsageError."""
    return _read(path, field)[0]


def _read(path: Path, field: str) -> tuple[bytes, int]:
    """The bytes and the mode of one and the same file."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}", where=str(path), field=field
        ) from None
    if len(content) > MAX_BYTES:
        raise UsageError("too large", where=str(path), field=field, limit=f"{MAX_BYTES} bytes")
    return content, mode


def read_secret(path: Path, field: str) -> bytes:
    """The same, of a file that only its owner, and its group, may read. Raises UsageError."""
    content, mode = _read(path, field)
    if mode & OTHERS:
        raise UsageError(
            f"others may read or change the file (mode {mode & 0o777:04o})",
            where=str(path),
            field=field,
            limit="mode 0600, or 0640",
            hint=f"chmod 600 {path}",
        )
    return content


def read_word(path: Path, field: str) -> str:
    """The one line of a secret file: a password or a token. Raises UsageError."""
    try:
        text = read_secret(path, field).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError("the file is not text", where=str(path), field=field) from None
    if "\n" in text or "\r" in text or "\0" in text:
        raise UsageError("the file has more than one line", where=str(path), field=field)
    return text


def write_new(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Make a file that was not there, never readable by more than ``mode``. Raises UsageError."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise UsageError(
            "the file exists, and is not overwritten", where=str(path), hint="move it away first"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from None
    with os.fdopen(number, "wb") as file:
        file.write(content)


def replace_private(path: Path, content: bytes) -> None:
    """Put ``content`` in place of the file, whole or not at all, with mode 0600."""
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from None
    fresh = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


class Reloaded(Generic[Loaded]):
    """What ``load`` makes of some files, made anew once they have changed.

    The first load raises what ``load`` raises. Where a later one fails, what was loaded before
    stays in use, and the log says so once.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], Loaded]) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._seen = self._look()
        self._value = load()

    @property
    def now(self) -> Loaded:
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._value = self._load()
                log.info("loaded anew: %s", ", ".join(map(str, self._paths)))
            except (ElasticError, OSError, ValueError) as error:
                log.error("what was loaded before stays in use: %s", error)
        return self._value

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_look(path) for path in self._paths)


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
