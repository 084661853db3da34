"""Tensors in a file, in the safetensors format: written and hashed in one pass, checked, read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.integrity import (
    LENGTH_BYTES,
    check_file,
    check_header,
    check_stream,
    unreadable,
)
from elasticps.checkpoint.manifest import FileEntry
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import Url
from elasticps.errors import CheckpointError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def can_hold(dtype: torch.dtype) -> bool:
    """Can a file have a tensor of it?"""
    return dtype in _NAMES


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    disk: Disk = STORAGE,
    earlier: Earlier | None = None,
) -> FileEntry:
    """Write CPU ``tensors`` to a new file and fsync it, as ``write_rows`` does.

    Raises OSError, CheckpointError.
    """
    rows = [
        Row(name, tensor.dtype, tuple(tensor.shape), bytes_of(tensor))
        for name, tensor in tensors.items()
    ]
    return write_rows(path, rows, disk=disk, earlier=earlier)


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor to be written, and its bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    part: memoryview


@dataclass(frozen=True, slots=True)
class Earlier:
    """A file of a checkpoint that is there, with the SHA-256 that its manifest names."""

    path: Path
    sha256: str


def write_rows(
    path: Path,
    rows: Iterable[Row],
    *,
    disk: Disk = STORAGE,
    durable: bool = True,
    earlier: Earlier | None = None,
) -> FileEntry:
    """Write tensors to a new file, and fsync it where it is to be ``durable``.

    Where the ``earlier`` file holds the very same, ``path`` is a second name of that one. Raises
    OSError, CheckpointError.
    """
    # Wider ones first: every tensor is then aligned for its dtype.
    ordered = sorted(rows, key=lambda row: (-row.dtype.itemsize, row.name))
    parts: list[bytes | memoryview] = [_header(path, ordered), *(row.part for row in ordered)]
    size = sum(map(len, parts))
    digest = hashlib.sha256()
    if earlier is not None:
        for part in parts:
            digest.update(part)
        entry = FileEntry(name=path.name, size=size, sha256=digest.hexdigest())
        if entry.sha256 != earlier.sha256 or not _linked(earlier, path, entry, disk):
            (disk.create if durable else disk.write)(path, parts)
        return entry

    def hashed() -> Iterator[bytes | memoryview]:
        for part in parts:
            digest.update(part)
            yield part

    (disk.create if durable else disk.write)(path, hashed())
    return FileEntry(name=path.name, size=size, sha256=digest.hexdigest())


def _linked(earlier: Earlier, path: Path, entry: FileEntry, disk: Disk) -> bool:
    """Is ``path`` now another name of the earlier file? Not where that has gone, or is damaged, or
    the file system has no second names."""
    try:
        # Read first: what the disk has lost of it must not go on into every later checkpoint.
        # A store holds its objects against digests of its own, and reading them is costly.
        if not isinstance(path, Url):
            check_file(earlier.path, entry, entry.name, disk=disk)
        disk.link(earlier.path, path)
    except (OSError, CheckpointError):
        return False
    return True


def _header(path: Path, ordered: Sequence[Row]) -> bytes:
    rows: dict[str, object] = {}
    offset = 0
    for row in ordered:
        if row.dtype not in _NAMES or row.name == "__metadata__":
            raise CheckpointError(
                f"{row.name} of dtype {row.dtype} cannot be in a checkpoint",
                where=str(path),
                field=row.name,
            )
        end = offset + len(row.part)
        rows[row.name] = {
            "dtype": _NAMES[row.dtype],
            "shape": list(row.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    body = json.dumps(rows, separators=(",", ":")).encode()
    body += b" " * (-len(body) % LENGTH_BYTES)
    check_header(len(body), path)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A CPU tensor's bytes in the order of its elements."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def read_tensors(directory: Path, entry: FileEntry, field: str) -> dict[str, torch.Tensor]:
    """The tensors of a file that is, to the bit, what ``entry`` says of it.

    ``field`` is the file's part in the manifest. Raises CheckpointError, naming field and limit.
    """
    path = directory / entry.name
    try:
        if isinstance(path, Url):
            return _fetched(path, entry, field)
        check_file(path, entry, field)
        return load_file(path)
    except OSError as error:
        raise unreadable(error, path, field) from error
    except SafetensorError as error:
        raise CheckpointError(f"not safetensors: {error}", where=str(path), field=field) from error


def _fetched(path: Path, entry: FileEntry, field: str) -> dict[str, torch.Tensor]:
    """The same of a file that is not here: it is read once, into memory."""
    with STORAGE.open(path) as file:
        body = file.read()
    check_stream(io.BytesIO(body), path, entry, field)
    return load(body)
