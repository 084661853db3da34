"""A checkpoint's manifest: what it holds, of which job at which round, and how to know it whole."""

from __future__ import annotations

import hashlib
import io
import math
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import Self

import msgspec

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.storage import STORAGE
from elasticps.core.blocks import Model
from elasticps.core.ids import Round
from elasticps.core.ranges import DataSpec, Range, Supply
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import CheckpointError, listed

BY_PARAMETER = 4
"""The format with all values in one file and all optimizer state in another."""
FORMAT = 5
"""The format with a file for each block, as the shard servers write them."""
MANIFEST = "manifest.json"
BUFFER = "buffer/"
"""How the name of a buffer begins in the worker's file."""
MAX_MANIFEST_BYTES = 100_000_000
PICKLE_STARTS = (b"\x80", b"PK\x03\x04")
"""How ``pickle`` and ``torch.save`` begin their files."""
UNKNOWN_OPTIMIZER = ""
"""That of a checkpoint that was made of weights alone: there is no state of any."""
UNSEALED = "0" * 64
"""What stands in place of the digest while it is taken."""

Scalar = float | int | bool | None


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file beside the manifest; ``xxh128`` is its XXH3 hash, of 128 bits."""

    name: str
    size: int
    xxh128: str


class StateEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter's optimizer state: the keys of its tensors, and what is not a tensor."""

    tensors: tuple[str, ...] = ()
    scalars: dict[str, Scalar] = {}


class BlockEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Elements ``start`` to ``stop`` of a parameter: their value and optimizer state, in a file.

    ``round`` is what the block was at; ``version`` counts the ops on it in the job's life. A state
    tensor has an element for each of the block's, or is the same in all blocks of the parameter.
    """

    parameter: str
    start: int
    stop: int
    round: Round
    version: int
    file: FileEntry
    scalars: dict[str, Scalar] = {}


class CutKind(StrEnum):
    """Of what a checkpoint is whole."""

    ROUND = "round"
    """Every block is as it was after the same round."""
    BLOCK = "block"
    """Each block is as it was at one moment, another one for each."""


class DataPosition(msgspec.Struct, frozen=True, kw_only=True):
    """The data that the job reads, and which of it no finished round has used yet.

    That is every position from ``position`` on, and the ranges ``[start, stop)`` given back.
    """

    size: int
    batch_size: int
    epochs: int
    seed: int
    position: int
    given_back: tuple[tuple[int, int], ...] = ()

    @classmethod
    def at(cls, data: DataSpec, supply: Supply) -> Self:
        return cls(
            size=data.size,
            batch_size=data.batch_size,
            epochs=data.epochs,
            seed=data.seed,
            position=supply.position,
            given_back=tuple((part.start, part.stop) for part in supply.given_back),
        )

    @property
    def data(self) -> DataSpec:
        return DataSpec(self.size, self.batch_size, self.epochs, self.seed)

    @property
    def supply(self) -> Supply:
        return Supply(self.position, tuple(Range(*part) for part in self.given_back))


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Written last: a directory without one is no checkpoint.

    ``owner`` is the identity of the ``job``, which no other job of any cluster has. ``data`` is
    None for a job that reads no ``run.data``. ``torch`` and ``plugins`` are the versions of those
    that made it. ``digest`` is the SHA-256 of the file, taken with zeros in place of the digest.

    ``worker`` is the file of what the main worker has for itself: buffers and random states, and
    ``frozen`` that of the parameters that the job does not train. ``tied`` are further names in the
    model's state_dict, each with the name that its tensor is under here. ``left_out`` are those of
    tensors that no file can have, with the dtype of each.

    What the job holds is in ``blocks``, or, in format 4, in the files ``values`` and ``optimizer``
    with ``state`` by parameter name.
    """

    format: int
    digest: str = UNSEALED
    elasticps: str
    created_unix: float
    job: str
    owner: str
    round: Round
    model: Model
    data: DataPosition | None
    cut: CutKind = CutKind.ROUND
    torch: str = ""
    plugins: dict[str, str] = {}
    blocks: tuple[BlockEntry, ...] = ()
    state: dict[str, StateEntry] = {}
    values: FileEntry | None = None
    optimizer: FileEntry | None = None
    worker: FileEntry | None = None
    frozen: FileEntry | None = None
    tied: dict[str, str] = {}
    left_out: dict[str, str] = {}

    @property
    def files(self) -> list[tuple[str, FileEntry]]:
        """Every file beside this one, by its part in the manifest."""
        found = _there(("values", self.values), ("optimizer", self.optimizer))
        blocks = [(f"blocks[{i}].file", row.file) for i, row in enumerate(self.blocks)]
        return found + self.of_the_worker + blocks

    @property
    def of_the_worker(self) -> list[tuple[str, FileEntry]]:
        """Those that the main worker has written, by their part in the manifest."""
        return _there(("worker", self.worker), ("frozen", self.frozen))


def _there(*files: tuple[str, FileEntry | None]) -> list[tuple[str, FileEntry]]:
    return [(field, entry) for field, entry in files if entry is not None]


class _Format(msgspec.Struct, frozen=True):
    format: int


class _Sealed(msgspec.Struct, frozen=True):
    digest: str


def encoded(manifest: Manifest) -> bytes:
    """The file's bytes, sealed. Raises CheckpointError for a number that JSON cannot hold."""
    scalars = [(name, entry.scalars) for name, entry in manifest.state.items()]
    scalars += [(row.parameter, row.scalars) for row in manifest.blocks]
    for name, items in scalars:
        for key, item in items.items():
            if isinstance(item, float) and not math.isfinite(item):
                raise CheckpointError(
                    f"the optimizer state {key} of {name} is {item}", field=key, limit="finite"
                )
    unsealed = msgspec.structs.replace(manifest, digest=UNSEALED)
    return sealed(msgspec.json.format(msgspec.json.encode(unsealed), indent=1))


def sealed(body: bytes) -> bytes:
    """``body``, whose digest is ``UNSEALED``, with its digest."""
    return body.replace(UNSEALED.encode(), hashlib.sha256(body).hexdigest().encode(), 1)


def read_manifest(directory: Path, *, disk: Disk = STORAGE) -> Manifest:
    """Read and check the manifest in ``directory``. Raises CheckpointError naming the field."""
    path = directory / MANIFEST
    body = _bytes_of(path, disk)
    try:
        _check_format(msgspec.json.decode(body, type=_Format).format, path)
        _check_digest(body, msgspec.json.decode(body, type=_Sealed).digest, path)
        manifest = msgspec.json.decode(body, type=Manifest)
    except UNDECODABLE as error:
        raise CheckpointError(
            f"not a checkpoint's manifest: {error}", where=str(path), field=MANIFEST
        ) from error
    _check(manifest, path)
    return manifest


def _check_format(format_: int, path: Path) -> None:
    if format_ not in (BY_PARAMETER, FORMAT):
        raise CheckpointError(
            f"the checkpoint has format {format_}",
            where=str(path),
            field="format",
            limit=f"{BY_PARAMETER} or {FORMAT}",
            hint="resume it with the elasticps version that wrote it",
        )


def _check_digest(body: bytes, digest: str, path: Path) -> None:
    # Of the bytes, not of what they mean: that would change with the fields of a later version.
    unsealed = body.replace(digest.encode(), UNSEALED.encode(), 1)
    if hashlib.sha256(unsealed).hexdigest() != digest:
        raise CheckpointError(
            "the manifest is damaged: its SHA-256 differs from the one that it names",
            where=str(path),
            field="digest",
            limit=digest,
        )


def _bytes_of(path: Path, disk: Disk) -> bytes:
    try:
        with disk.open(path) as file:
            size = file.seek(0, io.SEEK_END)
            if size > MAX_MANIFEST_BYTES:
                raise CheckpointError(
                    f"a manifest of {size} bytes",
                    where=str(path),
                    field=MANIFEST,
                    limit=f"{MAX_MANIFEST_BYTES} bytes",
                )
            file.seek(0)
            body = file.read()
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", where=str(path), field=MANIFEST
        ) from error
    refuse_pickle(body, path, MANIFEST)
    return body


def refuse_pickle(start: bytes, path: Path, field: str) -> None:
    """A pickle runs code when it is loaded, and is never loaded here.

    ``start`` are a file's first bytes, nine at least: safetensors begins with a length, which may
    look like a pickle's first byte, and then with the brace of its header.
    """
    if start.startswith(PICKLE_STARTS) and start[8:9] != b"{":
        raise CheckpointError(
            "this is a pickle (as torch.save writes), which can run code and is never loaded",
            where=str(path),
            field=field,
            limit="safetensors and JSON",
        )


def _check(manifest: Manifest, path: Path) -> None:
    """What the types do not say."""
    if manifest.format == BY_PARAMETER and None in (manifest.values, manifest.optimizer):
        raise CheckpointError(
            f"format {BY_PARAMETER} without its two files", where=str(path), field="values"
        )
    for field, entry in manifest.files:
        if not is_plain(entry.name):
            raise CheckpointError(
                f"{entry.name!r} is not the name of a file in the checkpoint's directory",
                where=str(path),
                field=f"{field}.name",
                limit="a plain file name",
            )
    if manifest.round < 0:
        raise CheckpointError(
            f"round {manifest.round}", where=str(path), field="round", limit=">= 0"
        )
    if manifest.format != BY_PARAMETER:
        _check_blocks(manifest, path)
    known = {parameter.name for parameter in manifest.model.parameters}
    for name in manifest.state.keys() - known:
        raise CheckpointError(
            f"state of {name}, which is no parameter of the model", where=str(path), field="state"
        )
    if manifest.data is not None and not _is_possible(manifest.data):
        raise CheckpointError(
            "the data position lies outside the data", where=str(path), field="data"
        )


def is_plain(name: str) -> bool:
    """Can it be a file beside the manifest?"""
    return name not in ("", ".", "..", MANIFEST) and set(name).isdisjoint("/\\\0")


def _check_blocks(manifest: Manifest, path: Path) -> None:
    """Raise CheckpointError unless the blocks are every parameter's elements, each once."""
    parts: dict[str, list[tuple[int, int]]] = {row.name: [] for row in manifest.model.parameters}
    sizes = dict.fromkeys(parts, 0)
    for row in manifest.blocks:
        if row.parameter not in parts:
            raise CheckpointError(
                f"a block of {row.parameter}, which is no parameter of the model",
                where=str(path),
                field="blocks",
            )
        parts[row.parameter].append((row.start, row.stop))
        sizes[row.parameter] += row.file.size
    for parameter in manifest.model.parameters:
        reached: float = 0
        for start, stop in sorted(parts[parameter.name]):
            reached = stop if start == reached <= stop else math.nan
        if reached != parameter.numel or sizes[parameter.name] < parameter.numel:
            raise CheckpointError(
                f"the blocks of {parameter.name} are not its {parameter.numel} elements",
                where=str(path),
                field="blocks",
                limit="each element once",
            )


def _is_possible(data: DataPosition) -> bool:
    return (
        min(data.size, data.batch_size, data.epochs) >= 1
        and 0 <= data.position <= data.size * data.epochs
        and all(0 <= start < stop <= data.position for start, stop in data.given_back)
    )


def check_same_model(written: Model, model: Model, directory: Path) -> None:
    """Raise CheckpointError, naming the difference, unless what was ``written`` is such a model.

    Options such as the learning rate, and the size of blocks, may differ. One made of weights alone
    fits any optimizer, and may have more tensors: what a script keeps to itself.
    """
    if written.optimizer == UNKNOWN_OPTIMIZER:
        names = {row.name for row in model.parameters}
        theirs_by_name = {row.name: row for row in written.parameters if row.name in names}
        missing = [row.name for row in model.parameters if row.name not in theirs_by_name]
        if missing:
            raise CheckpointError(
                f"the weights have no {listed(missing)}, which the job trains",
                where=str(directory),
                field="parameters",
                limit=f"they have {listed([row.name for row in written.parameters])}",
                hint="import a file whose names are those of the model's state_dict;"
                " --keep-names leaves a prefix where it is",
            )
        rows = tuple(theirs_by_name[r.name] for r in model.parameters if r.name in theirs_by_name)
        written = msgspec.structs.replace(
            written, parameters=rows, optimizer=model.optimizer, elementwise=model.elementwise
        )
    for field in ("optimizer", "elementwise"):
        there, here = getattr(written, field), getattr(model, field)
        if there != here:
            raise _another_model(directory, field, there, here)
    for theirs, ours in zip_longest(written.parameters, model.parameters):
        there, here = (
            f"{row.name} {list(row.shape)} {row.dtype}" if row else "no more"
            for row in (theirs, ours)
        )
        if there != here:
            raise _another_model(directory, "parameters", there, here)


def _another_model(directory: Path, field: str, there: object, here: object) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is of another model: {there} there, {here} here",
        where=str(directory),
        field=field,
        hint="resume with the model and the optimizer that the checkpoint was made with",
    )
