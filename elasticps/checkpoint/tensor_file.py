"""Tensors in a file, in the safetensors format: written, hashed, checked, read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.integrity import (
    LENGTH_BYTES,
    check_file,
    check_header,
    check_stream,
    sha256_of,
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
LINKED = "-same"
"""How the name of a file ends that was found to be as in the checkpoint before."""


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

    Where the ``earlier`` file holds the very same, that one gets a second name beside ``path``
    instead. Raises OSError, CheckpointError.
    """
    content = _Content.of(path, rows)
    if earlier is not None:
        digest = hashlib.sha256()
        for part in content.parts():
            digest.update(part)
        linked = _linked(earlier, path, content.size, digest.hexdigest(), disk)
        if linked is not None:
            return linked
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes | memoryview]:
        for part in content.parts():
            digest.update(part)
            yield part

    (disk.create if durable else disk.write)(path, hashed())
    return FileEntry(name=path.name, size=content.size, sha256=digest.hexdigest())


@dataclass(frozen=True, slots=True)
class _Content:
    """What is to be in a file."""

    header: bytes
    rows: Sequence[Row]

    @classmethod
    def of(cls, path: Path, rows: Iterable[Row]) -> Self:
        # Wider ones first: every tensor is then aligned for its dtype.
        ordered = sorted(rows, key=lambda row: (-row.dtype.itemsize, row.name))
        return cls(_header(path, ordered), ordered)

    @property
    def size(self) -> int:
        return len(self.header) + sum(row.part.nbytes for row in self.rows)

    def parts(self) -> Iterator[bytes | memoryview]:
        yield self.header
        for row in self.rows:
            yield from row.pieces()


def write_unhashed(path: Path, rows: Iterable[Row], *, disk: Disk = STORAGE) -> int:
    """Write tensors to a new file, not durably, and leave the rest to ``settle_file``.

    Returns the file's size. Raises OSError, CheckpointError.
    """
    content = _Content.of(path, rows)
    disk.write(path, content.parts())
    return content.size


def settle_file(
    path: Path, size: int, *, disk: Disk = STORAGE, earlier: Earlier | None = None
) -> FileEntry:
    """Hash a file that was just written, of ``size`` bytes, and fsync it.

    Where the ``earlier`` file holds the very same, that one gets a second name beside ``path``
    instead, which is removed. Raises OSError, CheckpointError.
    """
    with disk.open(path) as file:
        digest = sha256_of(file)
        if file.tell() != size:
            raise CheckpointError(
                f"{path.name} has {file.tell()} bytes", where=str(path), limit=f"{size}, as written"
            )
    linked = _linked(earlier, path, size, digest, disk) if earlier is not None else None
    if linked is not None:
        disk.remove_tree(path)
        return linked
    disk.sync_file(path)
    return FileEntry(name=path.name, size=size, sha256=digest)


def is_hashed_first(path: Path, earlier: Earlier | None) -> bool:
    """Is a file for ``write_rows``, and not for ``write_unhashed``?

    One that goes to a store is: what is there already is not to be sent. So is one that was found
    to be as it was the last time.
    """
    return isinstance(path, Url) or (earlier is not None and earlier.path.stem.endswith(LINKED))


def _linked(earlier: Earlier, path: Path, size: int, digest: str, disk: Disk) -> FileEntry | None:
    """Give the earlier file a second name beside ``path``, if it is the same. None where it is not
    the same, has gone or is damaged, and where the file system has no second names."""
    if digest != earlier.sha256:
        return None
    second = path.with_stem(path.stem + LINKED)
    entry = FileEntry(name=second.name, size=size, sha256=digest)
    try:
        # Read first: what the disk has lost of it must not go on into every later checkpoint.
        # A store holds its objects against digests of its own, and reading them is costly.
        if not isinstance(path, Url):
            check_file(earlier.path, entry, entry.name, disk=disk)
        disk.link(earlier.path, second)
    except (OSError, CheckpointError):
        return None
    return entry


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
