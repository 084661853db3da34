"""Object stores, and whatever else fsspec knows, as a ``Disk``.

An object is there once it was written to its end, and is durable then. There are no directories
to sync and nothing can be renamed: what must appear at once is one object, written last.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from elasticps.errors import ElasticError

OBJECT_STORES = frozenset(
    ["abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "oss", "r2", "s3", "s3a"]
)
"""Where a directory is no more than a part of the names in it."""


class RemoteDisk:
    """Every call may raise OSError, whatever the library of the protocol raises."""

    def exists(self, path: Path) -> bool:
        return bool(self._kind(path))

    def is_file(self, path: Path) -> bool:
        return self._kind(path) == "file"

    def entries(self, directory: Path) -> list[Path]:
        return [directory / name for name, _ in self._listed(directory)]

    def sizes(self, directory: Path) -> dict[str, int]:
        listed = self._listed(directory)
        return {name: int(row["size"]) for name, row in listed if row["type"] == "file"}

    def open(self, path: Path) -> BinaryIO:
        with _told(path):
            fs, inner = _at(path)
            return cast("BinaryIO", fs.open(inner, "rb"))

    def make_directory(self, path: Path) -> None:
        self.make_directories(path)

    def make_directories(self, path: Path) -> None:
        if path.parts[0].rstrip(":") in OBJECT_STORES:
            return
        with _told(path):
            fs, inner = _at(path)
            fs.makedirs(inner, exist_ok=True)

    def create(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        self.write(path, parts)

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """One part alone is there whole or not at all; of several a beginning may be there."""
        with _told(path):
            fs, inner = _at(path)
            rest = iter(parts)
            first, second = next(rest, b""), next(rest, None)
            if second is None:
                fs.pipe_file(inner, bytes(first))
                return
            with fs.open(inner, "wb") as file:
                for part in chain((first, second), rest):
                    file.write(part)

    def sync_file(self, path: Path) -> None:
        """It is durable already."""

    def link(self, source: Path, target: Path) -> None:
        """Copied by the store itself: nothing of it comes over the network."""
        with _told(target):
            fs, inner = _at(source)
            fs.cp_file(inner, _at(target)[1])

    def rename(self, source: Path, target: Path) -> None:
        """Not at once: all is copied, then removed."""
        for path in self.entries(source):
            self.link(path, target / path.name)
        self.remove_tree(source)

    def remove_tree(self, path: Path, *, ignore_errors: bool = False) -> None:
        try:
            with _told(path):
                fs, inner = _at(path)
                fs.rm(inner, recursive=True)
        except OSError:
            if not ignore_errors:
                raise

    def sync_directory(self, path: Path) -> None:
        """There is none."""

    def _kind(self, path: Path) -> str:
        """Empty where nothing is there."""
        try:
            with _told(path):
                fs, inner = _at(path)
                return str(fs.info(inner)["type"])
        except FileNotFoundError:
            return ""

    def _listed(self, directory: Path) -> list[tuple[str, dict[str, Any]]]:
        with _told(directory):
            fs, inner = _at(directory)
            rows = [(str(row["name"]).rstrip("/"), row) for row in fs.ls(inner, detail=True)]
        # Some stores keep an object for the directory itself.
        its_own = inner.strip("/")
        return [(name.rpartition("/")[2], row) for name, row in rows if name.strip("/") != its_own]


def _at(path: Path) -> tuple[Any, str]:
    """The file system of a URL, with nothing remembered of what was there, and the path in it."""
    from fsspec.core import url_to_fs

    fs, inner = url_to_fs(str(path))
    fs.invalidate_cache()
    return fs, inner


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except ElasticError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    except Exception as error:  # each protocol's library has errors of its own
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(path)) from error
