"""Any bytes as a checkpoint's manifest or as its file of tensors: only a CheckpointError comes out.

An input is a byte that says which, and then the file.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import xxhash

from elasticps.checkpoint.integrity import check_whole
from elasticps.checkpoint.manifest import MANIFEST, FileEntry, sealed
from elasticps.checkpoint.snapshot import read
from elasticps.checkpoint.tensor_file import read_tensors
from elasticps.errors import CheckpointError
from tests.fuzz.target_wire import require
from tests.support.checkpoints import write_round

MANIFEST_SEALED, MANIFEST_AS_IT_IS, TENSORS = range(3)


@cache
def place() -> Path:
    """A whole checkpoint, whose manifest each input replaces."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    made = write_round(root, 4)
    shutil.copy(made / MANIFEST, root / MANIFEST)
    return made


def one_input(data: bytes) -> None:
    """Raises Finding, or whatever must not have come out."""
    if not data:
        return
    body = data[1:]
    if data[0] % 3 == TENSORS:
        _as_tensors(body)
    else:
        _as_manifest(sealed(body) if data[0] % 3 == MANIFEST_SEALED else body)


def _as_manifest(body: bytes) -> None:
    (place() / MANIFEST).write_bytes(body)
    try:
        snapshot = read(place())
    except CheckpointError as error:
        require(bool(error.field and error.where), f"an error names no field or file: {error}")
        return
    require(check_whole(place()).round == snapshot.round, "two readers read it differently")
    for row in snapshot.model.parameters:
        require(list(snapshot.values[row.name].shape) == list(row.shape), "another shape")


def _as_tensors(body: bytes) -> None:
    path = place() / "tensors"
    path.write_bytes(body)
    entry = FileEntry(name=path.name, size=len(body), xxh128=xxhash.xxh3_128(body).hexdigest())
    try:
        tensors = read_tensors(place(), entry, "values")
    except CheckpointError as error:
        require(bool(error.field and error.where), f"an error names no field or file: {error}")
        return
    held = sum(tensor.nbytes for tensor in tensors.values())
    require(held <= len(body), f"{held} bytes of tensors out of a file of {len(body)}")
