"""A checkpoint's tensors by the names of the model's ``state_dict``, and how their bytes are read.

Without torch: nothing here computes with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from elasticps.checkpoint.integrity import CHUNK_BYTES, LENGTH_BYTES
from elasticps.checkpoint.manifest import BUFFER, Manifest
from elasticps.checkpoint.storage import STORAGE
from elasticps.core.blocks import DTYPE_BYTES, Parameter
from elasticps.errors import CheckpointError

VALUE = "value"
"""The tensor of a block's file that is no optimizer state."""
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTensor:
    """``dtype`` as safetensors names it; ``parts`` reads the bytes, a piece at a time."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: Callable[[], Iterator[bytes]]

    @property
    def width(self) -> int:
        """Bytes of an element; zero where there is none."""
        return self.nbytes // max(1, math.prod(self.shape))


def state_tensors(directory: Path, manifest: Manifest) -> dict[str, StateTensor]:
    """What was trained, then frozen parameters and buffers, and each under all of its names.

    Raises OSError, and CheckpointError where a name stands for a tensor that is not there.
    """
    found = _trained(directory, manifest)
    if manifest.frozen is not None:
        found = _in_file(directory / manifest.frozen.name) | found
    if manifest.worker is not None:
        own = _in_file(directory / manifest.worker.name).items()
        buffers = {name.removeprefix(BUFFER): row for name, row in own if name.startswith(BUFFER)}
        found = buffers | found
    for name, first in manifest.tied.items():
        if first not in found:
            raise CheckpointError(
                f"{name} is tied to {first}, which is not there",
                where=str(directory),
                field="tied",
            )
        found.setdefault(name, found[first])
    return found


def _trained(directory: Path, manifest: Manifest) -> dict[str, StateTensor]:
    if manifest.values is not None:
        return _in_file(directory / manifest.values.name)
    files: dict[str, list[tuple[int, Path]]] = {}
    for block in manifest.blocks:
        at = block.start, directory / block.file.name
        files.setdefault(block.parameter, []).append(at)
    return {
        row.name: _of_blocks(row, [path for _, path in sorted(files.get(row.name, ()))])
        for row in manifest.model.parameters
    }


def _of_blocks(row: Parameter, files: list[Path]) -> StateTensor:
    def parts() -> Iterator[bytes]:
        for path in files:
            yield from _in_file(path)[VALUE].parts()

    return StateTensor(
        dtype=_NAMES[row.dtype],
        shape=row.shape,
        nbytes=row.numel * DTYPE_BYTES[row.dtype],
        parts=parts,
    )


def _in_file(path: Path) -> dict[str, StateTensor]:
    """The tensors of a safetensors file that was held against its digest."""
    with STORAGE.open(path) as source:
        length = int.from_bytes(source.read(LENGTH_BYTES), "little")
        rows: dict[str, Any] = json.loads(source.read(length))
    rows.pop("__metadata__", None)
    return {name: _placed(path, LENGTH_BYTES + length, row) for name, row in rows.items()}


def _placed(path: Path, start: int, row: dict[str, Any]) -> StateTensor:
    first, last = row["data_offsets"]
    return StateTensor(
        dtype=row["dtype"],
        shape=tuple(row["shape"]),
        nbytes=last - first,
        parts=partial(_bytes, path, start + first, start + last),
    )


def _bytes(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with STORAGE.open(path) as source:
        source.seek(start)
        while part := source.read(min(CHUNK_BYTES, stop - source.tell())):
            yield part
