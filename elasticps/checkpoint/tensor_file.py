"""Tensors in a file, in the safetensors format: written and hashed in one pass, checked, read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from elasticps.checkpoint.disk import OS_DISK, Disk
from elasticps.checkpoint.manifest import FileEntry, refuse_pickle
from elasticps.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
CHUNK_BYTES = 1 << 20
_LENGTH_BYTES = 8
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


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, disk: Disk = OS_DISK
) -> FileEntry:
    """Write CPU ``tensors`` to a new file and fsync it. Raises OSError, CheckpointError."""
    # Wider ones first: every tensor is then aligned for its dtype.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    digest = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[bytes | memoryview]:
        nonlocal size
        parts: Iterator[bytes | memoryview] = chain(
            [_header(path, ordered)], (_bytes_of(tensor) for _, tensor in ordered)
        )
        for part in parts:
            digest.update(part)
            size += len(part)
            yield part

    disk.create(path, hashed())
    return FileEntry(name=path.name, size=size, sha256=digest.hexdigest())


def _header(path: Path, ordered: list[tuple[str, torch.Tensor]]) -> bytes:
    rows: dict[str, object] = {}
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in _NAMES or name == "__metadata__":
            raise CheckpointError(
                f"{name} of dtype {tensor.dtype} cannot be in a checkpoint",
                where=str(path),
                field=name,
            )
        rows[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    body = json.dumps(rows, separators=(",", ":")).encode()
    body += b" " * (-len(body) % _LENGTH_BYTES)
    _check_header(len(body), path)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def read_tensors(directory: Path, entry: FileEntry, field: str) -> dict[str, torch.Tensor]:
    """The tensors of a file that is, to the bit, what ``entry`` says of it.

    ``field`` is the file's part in the manifest. Raises CheckpointError, naming field and limit.
    """
    path = directory / entry.name
    check_file(path, entry, field)
    try:
        return load_file(path)
    except OSError as error:
        raise _unreadable(error, path, field) from error
    except SafetensorError as error:
        raise CheckpointError(f"not safetensors: {error}", where=str(path), field=field) from error


def check_file(path: Path, entry: FileEntry, field: str, *, disk: Disk = OS_DISK) -> None:
    """Hold a file, to the bit, against what ``entry`` says of it. Raises CheckpointError.

    ``field`` is the file's part in the manifest.
    """
    try:
        _check_file(path, entry, field, disk)
    except OSError as error:
        raise _unreadable(error, path, field) from error


def _unreadable(error: OSError, path: Path, field: str) -> CheckpointError:
    reason = "the file is missing" if isinstance(error, FileNotFoundError) else error.strerror
    return CheckpointError(f"cannot be read: {reason}", where=str(path), field=field)


def _check_file(path: Path, entry: FileEntry, field: str, disk: Disk) -> None:
    if disk.exists(path) and not disk.is_file(path):
        raise CheckpointError("not a regular file", where=str(path), field=field)
    with disk.open(path) as file:
        start = file.read(_LENGTH_BYTES + 1)
        refuse_pickle(start, path, field)
        size = file.seek(0, io.SEEK_END)
        if size != entry.size:
            raise CheckpointError(
                f"the file has {size} bytes: it was cut off or replaced",
                where=str(path),
                field=f"{field}.size",
                limit=f"{entry.size} bytes",
            )
        _check_header(int.from_bytes(start[:_LENGTH_BYTES], "little"), path)
        file.seek(len(start))
        digest = hashlib.sha256(start)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != entry.sha256:
        raise CheckpointError(
            "the file is damaged: its SHA-256 differs from the manifest's",
            where=str(path),
            field=f"{field}.sha256",
            limit=entry.sha256,
        )


def _check_header(length: int, path: Path) -> None:
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"a header of {length} bytes",
            where=str(path),
            field="header",
            limit=f"{MAX_HEADER_BYTES} bytes",
        )
