"""Where checkpoints are: a directory of the file system, or the URL of an object store or the like.

URLs are those of fsspec (``s3://bucket/folder``), and so are their credentials: each machine has
them in its environment or in fsspec's own configuration, and never in the URL.
"""

from __future__ import annotations

from pathlib import Path, PosixPath
from typing import NoReturn

from elasticps.errors import UsageError

FILE = "file://"
SEPARATOR = "://"
EXTRA = 'pip install "elasticps[remote]"'


class Url(PosixPath):
    """A place that the operating system has no path for. Its parts are joined as a path's are.

    What asks the operating system about one raises TypeError: all goes through a ``Disk``.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", SEPARATOR, 1)

    def __fspath__(self) -> NoReturn:
        raise TypeError(f"{self} is not on this machine's file system")


def place_of(text: str) -> Path:
    """The place that a user names: ``file:///folder`` is the directory itself."""
    if text.startswith(FILE):
        return Path(text.removeprefix(FILE))
    return Url(text) if SEPARATOR in text else Path(text)


def check_installed(text: str, field: str) -> None:
    """Raise UsageError where what ``text`` names needs a package that is not installed here."""
    if not isinstance(place_of(text), Url):
        return
    protocol = text.partition(SEPARATOR)[0]
    if protocol == "memory":
        raise UsageError(
            "memory:// is another place in each process",
            field=field,
            limit="a place that all machines reach",
        )
    try:
        from fsspec.registry import get_filesystem_class

        get_filesystem_class(protocol)
    except ImportError as error:
        raise UsageError(
            f"{protocol}:// cannot be used: {error}",
            field=field,
            limit="the packages of its protocol, on every machine",
            hint=f"{EXTRA}, and what that names",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"no file system is known as {protocol}://",
            field=field,
            limit="a path, or a URL of a protocol that fsspec knows",
        ) from error
