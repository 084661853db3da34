"""Tensors in a file, in the safetensors format: written, hashed, checked, read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
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
    torch.complex64: "C64",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}

PIECE_BYTES = 4 << 20
"""Of a tensor that is not on the CPU, or not contiguous, so much is copied at a time."""


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
    """Write ``tensors`` to a new file and fsync it, as ``write_rows`` does. They are not copied.

    Raises OSError, CheckpointError.
    """
    rows = [
        Row(name, tensor.dtype, tuple(tensor.shape), tensor) for name, tensor in tensors.items()
    ]
    return write_rows(path, rows, disk=disk, earlier=earlier)


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor to be written: its bytes, or itself."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    part: memoryview | torch.Tensor

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, as they are now."""
        return pieces_of(self.part) if isinstance(self.part, torch.Tensor) else iter([self.part])


@dataclass(frozen=True, slots=True)
class Earlier:
    """A file of a checkpoint that is there, with the digest that its manifest names."""

    path: Path
    xxh128: str


def write_rows(
    path: Path,
    rows: Iterable[Row],
    *,
    disk: Disk = STORAGE,
    durable: bool = True,
    earlier: Earlier | None = None,
) -> FileEntry:
    """Write tensors to a new file, and fsync it where it is to be ``durable``.

    Where the ``earlier`` file holds the very same, ``path`` becomes a second name of it instead.
    Raises OSError, CheckpointError.
    """
    # Wider ones first: every tensor is then aligned for its dtype.
    ordered = sorted(rows, key=lambda row: (-row.dtype.itemsize, row.name))
    header = _header(path, ordered)
    size = len(header) + sum(row.part.nbytes for row in ordered)

    def parts() -> Iterator[bytes | memoryview]:
        yield header
        for row in ordered:
            yield from row.pieces()

    write = disk.create if durable else disk.write
    if earlier is not None:
        entry = FileEntry(name=path.name, size=size, xxh128=_hashed(parts()).hexdigest())
        if _is_linked(path, entry, earlier, disk):
            return entry
        if not any(isinstance(row.part, torch.Tensor) for row in ordered):
            write(path, parts())
            return entry
    # A tensor may have changed since: the digest is of what is written.
    digest = xxhash.xxh3_128()
    write(path, (_noted(part, digest) for part in parts()))
    return FileEntry(name=path.name, size=size, xxh128=digest.hexdigest())


def _hashed(parts: Iterable[bytes | memoryview]) -> xxhash.xxh3_128:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest


def _noted(part: bytes | memoryview, digest: xxhash.xxh3_128) -> bytes | memoryview:
    digest.update(part)
    return part


def _is_linked(path: Path, entry: FileEntry, earlier: Earlier, disk: Disk) -> bool:
    """Make ``path`` a second name of the earlier file, if that is what ``entry`` says. False where
    it is not, has gone or is damaged, and where the file system has no second names."""
    if entry.xxh128 != earlier.xxh128:
        return False
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
        end = offset + row.part.nbytes
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
    flat = tensor.detach().resolve_conj().contiguous()
    # One element alone may have any stride, and is contiguous all the same.
    flat = flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def pieces_of(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The same of any tensor, piece by piece: no more than one is copied, where it must be."""
    rows = tensor.detach()
    if rows.is_contiguous():
        rows = rows.reshape(-1)
    if rows.dim() == 0 or rows.nbytes <= PIECE_BYTES:
        yield bytes_of(rows.cpu())
        return
    step = PIECE_BYTES * len(rows) // rows.nbytes
    for start in range(0, len(rows), max(1, step)):
        part = rows[start : start + step] if step else rows[start]
        yield from pieces_of(part)


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
