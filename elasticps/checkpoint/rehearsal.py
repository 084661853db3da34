"""Tiny checkpoints by their number, made and read by the code of all others on any disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from elasticps.checkpoint.directory import complete, newest, path_of, prune
from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.draft import Draft
from elasticps.checkpoint.integrity import check_whole
from elasticps.checkpoint.manifest import FORMAT, BlockEntry, Manifest, read_manifest
from elasticps.checkpoint.snapshot import not_written
from elasticps.checkpoint.tensor_file import (
    Earlier,
    Row,
    bytes_of,
    write_rows,
)
from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError

_MODEL = Model(
    parameters=(
        Parameter(name="weight", shape=(3,), dtype="float32"),
        Parameter(name="still", shape=(1,), dtype="float32"),
    ),
    optimizer="sgd",
    options={},
    groups=({},),
)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One job's checkpoints in ``root`` on ``disk``. Every call may raise CheckpointError."""

    disk: Disk
    root: Path

    def write(self, number: Round) -> None:
        """Write the checkpoint of a round: two blocks, whose values say which it is, and one that
        never changes, which is linked to the one before."""
        draft = Draft(self.root, number, disk=self.disk)
        try:
            draft.begin()
            parts = (("weight", 0, 2), ("weight", 2, 3), ("still", 0, 1))
            blocks = tuple(self._block(draft, number, *part) for part in parts)
            draft.check([block.file for block in blocks])
            draft.commit(
                Manifest(
                    format=FORMAT,
                    elasticps="rehearsal",
                    created_unix=time.time(),
                    job="rehearsal",
                    owner="rehearsal",
                    round=number,
                    model=_MODEL,
                    data=None,
                    blocks=blocks,
                )
            )
        except OSError as error:
            raise not_written(error, draft.place) from error
        finally:
            draft.drop()

    def _block(
        self, draft: Draft, number: Round, parameter: str, start: int, stop: int
    ) -> BlockEntry:
        fill = float(number) if parameter == "weight" else 1.0
        tensors = {
            "value": torch.full((stop - start,), fill),
            "momentum": torch.full((stop - start,), -fill),
        }
        path = draft.directory / f"{parameter}-{start}.safetensors"
        rows = [Row(key, item.dtype, item.shape, bytes_of(item)) for key, item in tensors.items()]
        earlier = self._earlier(parameter, start)
        entry = write_rows(path, rows, disk=self.disk, durable=False, earlier=earlier)
        self.disk.sync_file(path)
        return BlockEntry(
            parameter=parameter,
            start=start,
            stop=stop,
            round=number,
            version=number,
            file=entry,
        )

    def _earlier(self, parameter: str, start: int) -> Earlier | None:
        there = complete(self.root, disk=self.disk)
        try:
            blocks = read_manifest(there[0][1], disk=self.disk).blocks if there else ()
        except CheckpointError:
            return None
        files = [row.file for row in blocks if (row.parameter, row.start) == (parameter, start)]
        return Earlier(there[0][1] / files[0].name, files[0].xxh128) if files else None

    def prune(self, keep: int) -> None:
        prune(self.root, keep, disk=self.disk)

    def complete(self) -> list[Round]:
        """The rounds of the complete ones, the newest first."""
        return [number for number, _ in complete(self.root, disk=self.disk)]

    def newest(self) -> Manifest:
        """What the newest complete one holds, whose files are to the bit what it says of them."""
        return check_whole(newest(self.root, disk=self.disk), disk=self.disk)

    def content(self, number: Round) -> Manifest:
        """The same of the checkpoint of a round."""
        return check_whole(path_of(self.root, number), disk=self.disk)
