"""A checkpoint as one safetensors file, which a plain torch model loads as its ``state_dict``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec

from elasticps.checkpoint.integrity import LENGTH_BYTES, check_header, check_whole
from elasticps.checkpoint.manifest import Manifest
from elasticps.checkpoint.state_tensors import state_tensors
from elasticps.checkpoint.storage import STORAGE
from elasticps.errors import CheckpointError, UsageError

SUFFIX = ".safetensors"


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written: ``tensors`` of the ``job`` after ``round`` rounds.

    ``left_out`` are names in the model's state_dict of what the checkpoint could not hold.
    """

    path: str
    job: str
    round: int
    tensors: int
    nbytes: int
    sha256: str
    left_out: tuple[str, ...] = ()


def export(directory: Path, out: Path, *, force: bool = False) -> Exported:
    """Write the model of the checkpoint in ``directory`` to ``out``, whole or not at all.

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
        left_out=manifest.left_out,
    )


def _content(directory: Path, manifest: Manifest, out: Path) -> tuple[Iterator[bytes], int]:
    """The new file's bytes, and how many tensors it has."""
    found = state_tensors(directory, manifest)
    # The wider dtypes first: all are aligned then.
    ordered = sorted(found.items(), key=lambda item: (-item[1].width, item[0]))
    rows: dict[str, object] = {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        rows[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    bodies = chain.from_iterable(tensor.parts() for _, tensor in ordered)
    return chain([_header(rows, manifest, out)], bodies), len(rows)


def _header(rows: dict[str, object], manifest: Manifest, out: Path) -> bytes:
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
