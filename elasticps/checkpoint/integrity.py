"""Is a checkpoint, to the bit, what its manifest says? Asked of any disk, and without torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import xxhash

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.manifest import FileEntry, Manifest, read_manifest, refuse_pickle
from elasticps.checkpoint.storage import STORAGE
from elasticps.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The bound that safetensors sets itself."""
LENGTH_BYTES = 8
"""How many bytes say a safetensors header's length."""
CHUNK_BYTES = 1 << 20


def check_whole(directory: Path, *, disk: Disk = STORAGE) -> Manifest:
    """The manifest of a checkpoint all of whose files are what it says. Raises CheckpointError."""
    manifest = read_manifest(directory, disk=disk)
    for field, entry in manifest.files:
        check_file(directory / entry.name, entry, field, disk=disk)
    return manifest


def check_sizes(directory: Path) -> Manifest:
    """The manifest, whose files are there and as long as they should be. Raises CheckpointError."""
    manifest = read_manifest(directory)
    try:
        sizes = STORAGE.sizes(directory)
    except OSError as error:
        raise unreadable(error, directory, "directory") from error
    for _, entry in manifest.files:
        path = directory / entry.name
        size = sizes.get(entry.name)
        if size != entry.size:
            there = "is missing" if size is None else f"has {size} bytes, not {entry.size}"
            raise CheckpointError(f"{entry.name} {there}", where=str(path), field=entry.name)
    return manifest


def is_whole(directory: Path) -> bool:
    """Could a job go on from the checkpoint? Reads all of it."""
    try:
        check_whole(directory)
    except CheckpointError:
        return False
    return True


def check_file(path: Path, entry: FileEntry, field: str, *, disk: Disk = STORAGE) -> None:
    """Hold a file, to the bit, against what ``entry`` says of it. Raises CheckpointError.

    ``field`` is the file's part in the manifest.
    """
    try:
        _check_file(path, entry, field, disk)
    except OSError as error:
        raise unreadable(error, path, field) from error


def unreadable(error: OSError, path: Path, field: str) -> CheckpointError:
    """What to raise where a checkpoint's file could not be read."""
    reason = "the file is missing" if isinstance(error, FileNotFoundError) else error.strerror
    return CheckpointError(f"cannot be read: {reason}", where=str(path), field=field)


def _check_file(path: Path, entry: FileEntry, field: str, disk: Disk) -> None:
    if disk.exists(path) and not disk.is_file(path):
        raise CheckpointError("not a regular file", where=str(path), field=field)
    with disk.open(path) as file:
        check_stream(file, path, entry, field)


def check_stream(file: BinaryIO, path: Path, entry: FileEntry, field: str) -> None:
    """The same of a file that is open. Raises OSError and CheckpointError."""
    start = file.read(LENGTH_BYTES + 1)
    refuse_pickle(start, path, field)
    size = file.seek(0, io.SEEK_END)
    if size != entry.size:
        raise CheckpointError(
            f"the file has {size} bytes: it was cut off or replaced",
            where=str(path),
            field=f"{field}.size",
            limit=f"{entry.size} bytes",
        )
    check_header(int.from_bytes(start[:LENGTH_BYTES], "little"), path)
    file.seek(len(start))
    digest = xxhash.xxh3_128(start)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    if digest.hexdigest() != entry.xxh128:
        raise CheckpointError(
            "the file is damaged: its XXH128 differs from the manifest's",
            where=str(path),
            field=f"{field}.xxh128",
            limit=entry.xxh128,
        )


def check_header(length: int, path: Path) -> None:
    """Raise CheckpointError for a header that is longer than the format allows."""
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"a header of {length} bytes",
            where=str(path),
            field="header",
            limit=f"{MAX_HEADER_BYTES} bytes",
        )
