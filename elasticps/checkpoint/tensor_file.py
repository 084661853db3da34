"""Tensors in a file, in the safetensors format: written and hashed in one pass, checked, read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from elasticps.checkpoint.disk import OS_DISK, Disk
from elasticps.checkpoint.integrity import LENGTH_BYTES, check_file, check_header, unreadable
from elasticps.checkpoint.manifest import FileEntry
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
    body += b" " * (-len(body) % LENGTH_BYTES)
    check_header(len(body), path)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


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
        raise unreadable(error, path, field) from error
    except SafetensorError as error:
        raise CheckpointError(f"not safetensors: {error}", where=str(path), field=field) from error
