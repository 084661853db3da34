"""A ``state_dict`` in a file as a checkpoint of round 0: the start of a job, without a past."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from elasticps.checkpoint.export import SUFFIX
from elasticps.checkpoint.manifest import UNKNOWN_OPTIMIZER
from elasticps.checkpoint.snapshot import Snapshot, write
from elasticps.checkpoint.tensor_file import can_hold
from elasticps.checkpoint.url import Url
from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
NESTED = ("state_dict", "model", "model_state_dict")
"""Where those who save more than a state_dict mostly put it."""
WRAPPERS = ("module.", "_orig_mod.")
"""How names begin in what DistributedDataParallel and ``torch.compile`` have made of a model."""
_OBJECT = re.compile(r"GLOBAL (\S+) was not an allowed global")
_STYLE = re.compile("\x1b\\[[0-9;]*m")

_UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError),
    *(LookupError, TypeError, AttributeError),  # of torch, for bytes that are no file of its own
)


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that was made.

    ``left_out``: what else the file has, by name, with what it is. ``prefix``: what was taken from
    the beginning of every name.
    """

    path: str
    tensors: int
    nbytes: int
    left_out: dict[str, str] = {}
    prefix: str = ""


def import_weights(file: Path, root: Path, *, version: str, keep_names: bool = False) -> Imported:
    """Write the tensors of ``file`` into ``root`` as a checkpoint of round 0.

    ``version`` is that of elasticps. A torch file is read with ``weights_only=True``: it cannot run
    code. A wrapper's prefix that all names have is taken away, unless ``keep_names``. Raises
    CheckpointError.
    """
    found = _read(file)
    reasons = {name: _why_not(name, item) for name, item in found.items()}
    left_out = {str(name): why for name, why in reasons.items() if why}
    kept = {name: item for name, item in found.items() if not reasons[name]}
    tensors = {name: _plain(cast("torch.Tensor", item)) for name, item in kept.items()}
    if not tensors:
        name, why = next(iter(left_out.items()), ("the state_dict", "empty"))
        raise CheckpointError(
            f"there is no tensor in it: {name} is {why}",
            where=str(file),
            field="file",
            limit="tensors by name, as model.state_dict() gives them",
        )
    prefix = "" if keep_names else _common_prefix(tensors)
    tensors = {name.removeprefix(prefix): item for name, item in tensors.items()}
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
    was_there = root.exists() if not isinstance(root, Url) else True
    try:
        place = write(root, snapshot, version=version)
    except CheckpointError:
        if not was_there:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise
    nbytes = sum(item.nbytes for item in tensors.values())
    return Imported(
        path=str(place), tensors=len(tensors), nbytes=nbytes, left_out=left_out, prefix=prefix
    )


def _why_not(name: object, item: object) -> str:
    """What it is, if a checkpoint cannot have it; else empty."""
    if not isinstance(name, str) or name == "__metadata__":
        return f"under the name {name!r}"
    if not isinstance(item, torch.Tensor):
        return f"a {type(item).__name__}"
    if item.layout is not torch.strided:
        return f"a tensor of layout {str(item.layout).removeprefix('torch.')}"
    if item.is_meta:
        return "a tensor without numbers (device meta)"
    if not can_hold(item.dtype):
        return f"a tensor of {str(item.dtype).removeprefix('torch.')}"
    return ""


def _plain(item: torch.Tensor) -> torch.Tensor:
    return item.detach().resolve_conj().resolve_neg().contiguous()


def _common_prefix(names: Iterable[str]) -> str:
    """All wrappers' prefixes, one in another, that every name has."""
    names, prefix = list(names), ""
    while True:
        longer = [prefix + part for part in WRAPPERS]
        found = [part for part in longer if all(name.startswith(part) for name in names)]
        if not found:
            return prefix
        prefix = found[0]


def _read(file: Path) -> Mapping[Any, object]:
    try:
        if file.suffix == SUFFIX:
            return load_file(file)
        if file.suffix in TORCH_SUFFIXES:
            return _state_dict(torch.load(file, map_location="cpu", weights_only=True), file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot be read: {reason}", where=str(file), field="file") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"no weights can be read: {_reason(error, file)}",
            where=str(file),
            field="file",
            limit=f"a {SUFFIX} file, or a torch file of tensors alone",
            hint="torch.save(model.state_dict(), ...) makes one" if file.suffix != SUFFIX else None,
        ) from error
    raise CheckpointError(
        f"{file.name!r} is not the name of a file of weights",
        where=str(file),
        field="file",
        limit=", ".join((SUFFIX, *TORCH_SUFFIXES)),
    )


def _reason(error: Exception, file: Path) -> str:
    if not file.stat().st_size:
        return "the file is empty"
    text = _STYLE.sub("", str(error))
    if found := _OBJECT.search(text):
        return f"it has an object of {found[1]}, which only code in the file could make"
    if isinstance(error, SafetensorError):
        return text.partition("\n")[0]
    return "torch.save has not written this, or it is cut off or damaged"


def _state_dict(found: object, file: Path) -> dict[Any, object]:
    for key in NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found:
        raise CheckpointError("there is no state_dict in it", where=str(file), field="file")
    return found
