"""Tiny checkpoints by their number, made and read by the code of all others on any disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from elasticps.checkpoint.directory import complete, newest, path_of, prune
from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.integrity import check_whole
from elasticps.checkpoint.manifest import Manifest
from elasticps.checkpoint.snapshot import Snapshot, write
from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import Round

_MODEL = Model(
    parameters=(Parameter(name="weight", shape=(3,), dtype="float32"),),
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
        """Write the checkpoint of a round; its values say which it is."""
        snapshot = Snapshot(
            job="rehearsal",
            owner="rehearsal",
            round=number,
            model=_MODEL,
            data=None,
            values={"weight": torch.full((3,), float(number))},
            state={"weight": {"momentum": torch.full((3,), -float(number))}},
        )
        write(self.root, snapshot, version="rehearsal", disk=self.disk)

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
