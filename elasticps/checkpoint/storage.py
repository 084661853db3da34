"""The disk that a place is on: this machine's file system, or what a URL names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from elasticps.checkpoint.disk import OS_DISK, Disk
from elasticps.checkpoint.remote import RemoteDisk
from elasticps.checkpoint.url import Url

REMOTE = RemoteDisk()


class Storage:
    """Every place, each on its own disk."""

    def exists(self, path: Path) -> bool:
        return _of(path).exists(path)

    def is_file(self, path: Path) -> bool:
        return _of(path).is_file(path)

    def entries(self, directory: Path) -> list[Path]:
        return _of(directory).entries(directory)

    def sizes(self, directory: Path) -> dict[str, int]:
        return _of(directory).sizes(directory)

    def open(self, path: Path) -> BinaryIO:
        return _of(path).open(path)

    def make_directory(self, path: Path) -> None:
        _of(path).make_directory(path)

    def make_directories(self, path: Path) -> None:
        _of(path).make_directories(path)

    def create(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        _of(path).create(path, parts)

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        _of(path).write(path, parts)

    def sync_file(self, path: Path) -> None:
        _of(path).sync_file(path)

    def link(self, source: Path, target: Path) -> None:
        _of(target).link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        _of(source).rename(source, target)

    def remove_tree(self, path: Path, *, ignore_errors: bool = False) -> None:
        _of(path).remove_tree(path, ignore_errors=ignore_errors)

    def sync_directory(self, path: Path) -> None:
        _of(path).sync_directory(path)


def _of(path: Path) -> Disk:
    return REMOTE if isinstance(path, Url) else OS_DISK


STORAGE = Storage()
