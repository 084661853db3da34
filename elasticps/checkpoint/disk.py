"""What is asked of the disk that checkpoints are on, and the real one.

All that is written and removed goes through a ``Disk``, so that one which loses power can be put
under the same code.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol


class Disk(Protocol):
    """A tree of directories and files. Raises OSError as the operating system's calls do.

    A name that was made, changed or removed is durable once its directory has been synced.
    """

    def exists(self, path: Path) -> bool: ...

    def is_file(self, path: Path) -> bool: ...

    def entries(self, directory: Path) -> list[Path]:
        """What is in a directory, in any order."""
        ...

    def sizes(self, directory: Path) -> dict[str, int]:
        """How many bytes each file in a directory has, by name."""
        ...

    def open(self, path: Path) -> BinaryIO:
        """Open a file to read it."""
        ...

    def make_directory(self, path: Path) -> None: ...

    def make_directories(self, path: Path) -> None:
        """Make a directory and those above it, unless they are there."""
        ...

    def create(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write a new file. Its content is durable, its name is not."""
        ...

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write a new file, for all who may read its directory. Nothing of it is durable yet."""
        ...

    def sync_file(self, path: Path) -> None:
        """Make a file's content durable."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Give a file that is durable a second name, which is not. Raises OSError where it has
        none of that."""
        ...

    def rename(self, source: Path, target: Path) -> None: ...

    def remove_tree(self, path: Path, *, ignore_errors: bool = False) -> None:
        """Remove a directory with all in it, or a file."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        ...


class OsDisk:
    """The file system of this machine."""

    def exists(self, path: Path) -> bool:
        return path.exists()

    def is_file(self, path: Path) -> bool:
        return path.is_file()

    def entries(self, directory: Path) -> list[Path]:
        return list(directory.iterdir())

    def sizes(self, directory: Path) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}

    def open(self, path: Path) -> BinaryIO:
        return path.open("rb")

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def make_directories(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        with path.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        with path.open("xb") as file:
            # A shard server keeps its own files to itself; this one is for the job's workers.
            os.fchmod(file.fileno(), path.parent.stat().st_mode & 0o666)
            file.writelines(parts)

    def sync_file(self, path: Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            # Nobody is to read it soon, and the next file's pages cost less where these are free:
            # a machine that has to be given them by its host writes at a third of the speed.
            if sys.platform == "linux":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def remove_tree(self, path: Path, *, ignore_errors: bool = False) -> None:
        if path.is_file():
            path.unlink(missing_ok=ignore_errors)
        else:
            shutil.rmtree(path, ignore_errors=ignore_errors)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


OS_DISK = OsDisk()
