"""A ``state_dict`` in a file as a checkpoint of round 0: the start of a job, without a past."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from elasticps.checkpoint.export import SUFFIX
from elasticps.checkpoint.manifest import UNKNOWN_OPTIMIZER
from elasticps.checkpoint.snapshot import Snapshot, write
from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
NESTED = ("state_dict", "model", "model_state_dict")
"""Where those who save more than a state_dict mostly put it."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that was made."""

    path: str
    tensors: int
    nbytes: int


def import_weights(file: Path, root: Path, *, version: str) -> Imported:
    """Write the tensors of ``file`` into ``root`` as a checkpoint of round 0.

    ``version`` is that of elasticps. A torch file is read with ``weights_only=True``: it cannot run
    code. Raises CheckpointError.
    """
    tensors = _read(file)
    rows = tuple(
        Parameter(name=name, shape=tuple(item.shape), dtype=str(item.dtype).removeprefix("torch."))
        for name, item in tensors.items()
    )
    snapshot = Snapshot(
        job=f"import of {file.name}",
        owner=f"import-{os.urandom(8).hex()}",
        round=Round(0),
        model=Model(parameters=rows, optimizer=UNKNOWN_OPTIMIZER, groups=({},)),
        data=None,
        values=tensors,
        state={},
    )
    place = write(root, snapshot, version=version)
    nbytes = sum(item.nbytes for item in tensors.values())
    return Imported(path=str(place), tensors=len(tensors), nbytes=nbytes)


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == SUFFIX:
            return load_file(file)
        if file.suffix in TORCH_SUFFIXES:
            return _state_dict(torch.load(file, map_location="cpu", weights_only=True), file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot be read: {reason}", where=str(file), field="file") from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        first, _, _ = str(error).partition("\n")
        raise CheckpointError(
            f"no weights can be read: {first}",
            where=str(file),
            field="file",
            limit=f"a {SUFFIX} file, or a torch file of tensors alone",
        ) from error
    raise CheckpointError(
        f"{file.name!r} is not the name of a file of weights",
        where=str(file),
        field="file",
        limit=", ".join((SUFFIX, *TORCH_SUFFIXES)),
    )


def _state_dict(found: object, file: Path) -> dict[str, torch.Tensor]:
    for key in NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found:
        raise CheckpointError("there is no state_dict in it", where=str(file), field="file")
    for name, item in found.items():
        if not (isinstance(name, str) and isinstance(item, torch.Tensor)):
            raise CheckpointError(
                f"{name!r} is a {type(item).__name__}",
                where=str(file),
                field="file",
                limit="tensors by name, as model.state_dict() gives them",
            )
    # Tensors of one storage, as tied ones are, are written each on its own.
    return {name: item.detach().contiguous() for name, item in found.items()}
