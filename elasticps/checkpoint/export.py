"""A checkpoint's weights as one safetensors file, by the names of the model's ``state_dict``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from elasticps.checkpoint.integrity import CHUNK_BYTES, LENGTH_BYTES, check_header, check_whole
from elasticps.checkpoint.manifest import Manifest
from elasticps.checkpoint.storage import STORAGE
from elasticps.core.blocks import DTYPE_BYTES
from elasticps.errors import CheckpointError, UsageError

SUFFIX = ".safetensors"
VALUE = "value"
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written: ``tensors`` of the ``job`` after ``round`` rounds."""

    path: str
    job: str
    round: int
    tensors: int
    nbytes: int
    sha256: str


def export(directory: Path, out: Path, *, force: bool = False) -> Exported:
    """Write the values of the checkpoint in ``directory`` to ``out``, whole or not at all.

    All of the checkpoint is held against its digests first. ``force`` replaces an ``out`` that is
    there. Raises CheckpointError, and UsageError for an ``out`` that will not do.
    """
    if out.suffix != SUFFIX:
        raise UsageError(
            f"{out.name!r} is not the name of a {SUFFIX} file",
            field="out",
            limit=f"a name that ends with {SUFFIX}",
            hint="torch.save writes pickles, which can run code; load the export with"
            " safetensors.torch.load_file",
        )
    if out.exists() and not force:
        raise _taken(out)
    manifest = check_whole(directory)
    try:
        return _written(directory, manifest, out, force)
    except OSError as error:
        raise CheckpointError(
            f"cannot be written: {error.strerror}", where=str(error.filename or out), field="out"
        ) from error


def _taken(out: Path) -> UsageError:
    return UsageError(
        "the file exists, and is not overwritten", where=str(out), field="out", hint="--force does"
    )


def _written(directory: Path, manifest: Manifest, out: Path, force: bool) -> Exported:
    digest, size, tensors = hashlib.sha256(), 0, 0

    def hashed() -> Iterator[bytes]:
        nonlocal size, tensors
        parts, tensors = _content(directory, manifest, out)
        for part in parts:
            digest.update(part)
            size += len(part)
            yield part

    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        STORAGE.create(temporary, hashed())
        _put(temporary, out, force)
    finally:
        temporary.unlink(missing_ok=True)
    STORAGE.sync_directory(out.parent)
    return Exported(
        path=str(out),
        job=manifest.job,
        round=manifest.round,
        tensors=tensors,
        nbytes=size,
        sha256=digest.hexdigest(),
    )


def _content(directory: Path, manifest: Manifest, out: Path) -> tuple[Iterator[bytes], int]:
    """The new file's bytes, and how many tensors it has."""
    if manifest.values is None:
        return _of_blocks(directory, manifest, out), len(manifest.model.parameters)
    path = directory / manifest.values.name
    rows, start = _rows(path)
    header = _header(rows, manifest, out)
    return chain([header], _bytes(path, start, manifest.values.size)), len(rows)


def _of_blocks(directory: Path, manifest: Manifest, out: Path) -> Iterator[bytes]:
    """Every parameter's blocks in order, the wider dtypes first: all are aligned then."""
    parameters = sorted(
        manifest.model.parameters, key=lambda row: (-DTYPE_BYTES[row.dtype], row.name)
    )
    rows: dict[str, Any] = {}
    offset = 0
    for row in parameters:
        end = offset + row.numel * DTYPE_BYTES[row.dtype]
        rows[row.name] = {
            "dtype": _NAMES[row.dtype],
            "shape": list(row.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    yield _header(rows, manifest, out)
    for row in parameters:
        blocks = (block for block in manifest.blocks if block.parameter == row.name)
        for block in sorted(blocks, key=lambda block: block.start):
            yield from _value_of(directory / block.file.name)


def _value_of(path: Path) -> Iterator[bytes]:
    rows, start = _rows(path)
    first, last = rows[VALUE]["data_offsets"]
    return _bytes(path, start + first, start + last)


def _rows(path: Path) -> tuple[dict[str, Any], int]:
    """A file's tensors, and where their bytes begin."""
    with STORAGE.open(path) as source:
        length = int.from_bytes(source.read(LENGTH_BYTES), "little")
        rows = json.loads(source.read(length))
    rows.pop("__metadata__", None)
    return rows, LENGTH_BYTES + length


def _header(rows: dict[str, Any], manifest: Manifest, out: Path) -> bytes:
    # Readers take "format" for the library whose tensors these are.
    about = {
        "format": "pt",
        "elasticps": manifest.elasticps,
        "job": manifest.job,
        "round": str(manifest.round),
    }
    body = json.dumps({"__metadata__": about, **rows}, separators=(",", ":")).encode()
    body += b" " * (-len(body) % LENGTH_BYTES)
    check_header(len(body), out)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def _bytes(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with STORAGE.open(path) as source:
        source.seek(start)
        while part := source.read(min(CHUNK_BYTES, stop - source.tell())):
            yield part


def _put(temporary: Path, out: Path, force: bool) -> None:
    """Give the file its name; without ``force`` never in place of another, however late it came."""
    if force:
        temporary.replace(out)
        return
    try:
        os.link(temporary, out)
    except FileExistsError:
        raise _taken(out) from None
    except OSError:  # a file system without second names: the check before has to do
        temporary.rename(out)
