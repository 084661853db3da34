"""A rig whose job makes checkpoints or goes on from one, and what trains on it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import elasticps
from elasticps.checkpoint.directory import complete
from elasticps.core.ids import WorkerId
from elasticps.errors import CheckpointError
from elasticps.server import saving
from elasticps.testing.rig import Rig
from elasticps.wire.control_messages import JobInfo, Welcome
from tests.support.scripts import as_worker, backward, dataset, network
from tests.support.wire import PATIENCE_S

BATCH = 8
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9},
    "adam": {"lr": 0.01, "amsgrad": True},
    "adafactor": {"lr": 0.01},
    "ftrl": {"lr": 0.01, "l1": 0.001},
    "nadam": {"lr": 0.01},
}


class CheckpointRig(Rig):
    """A rig whose job has the given wishes, ``ask`` being a user's for a checkpoint now."""

    def __init__(self, servers: int = 2, *, block_bytes: int = 4096, **wishes: Any) -> None:
        super().__init__(servers, start_workers=wishes.pop("start_workers", 1), audit=True)
        self._block_bytes = block_bytes
        self._wishes = wishes

    def ask(self, request: int) -> None:
        self._wishes["checkpoint_request"] = request
        self._tell_all(self._job_message())

    def _job_message(self) -> JobInfo:
        return msgspec.structs.replace(super()._job_message(), **self._wishes)

    def _welcome(self, worker: WorkerId) -> Welcome:
        return msgspec.structs.replace(super()._welcome(worker), block_bytes=self._block_bytes)


@dataclass(kw_only=True)
class Training:
    """What one worker has seen: its batches, and model and optimizer state at the end."""

    name: str = "sgd"
    stop_at: int = 0
    epochs: int = 3
    seed: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    batches: list[torch.Tensor] = field(default_factory=list)
    model: nn.Module = field(default_factory=network)
    state: dict[str, Any] = field(default_factory=dict)
    began_at: int = 0

    def __call__(self, run: elasticps.Run) -> Training:
        options = self.options or OPTIMIZERS[self.name]
        optimizer = run.optimizer(self.model, self.name, **options)
        self.began_at = run.round
        for batch in run.data(dataset(), batch_size=BATCH, epochs=self.epochs, seed=self.seed):
            self.batches.append(batch[0])
            optimizer.zero_grad()
            backward(self.model, batch)
            optimizer.step()
            if run.round == self.stop_at:
                break
        self.state = optimizer.state_dict()["state"]
        return self


def rounds_in(root: Path) -> list[int]:
    return [number for number, _ in complete(root)]


class SlowDisk:
    """Holds up every block that a shard server writes until it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.waiting = 0
        self._write = saving.write_block
        patch.setattr(saving, "write_block", self)

    def __call__(self, *what: Any) -> Any:
        self.waiting += 1
        self.go_on.wait(PATIENCE_S)
        return self._write(*what)


async def refused(script: Any = None, **wishes: Any) -> CheckpointError:
    """What a job with these wishes is told that trains by ``script`` and cannot."""

    def attempt(run: elasticps.Run) -> CheckpointError:
        with pytest.raises(CheckpointError) as caught:
            (script or Training())(run)
        return caught.value

    async with CheckpointRig(**wishes) as rig:
        error = await as_worker(rig, attempt)
    assert isinstance(error, CheckpointError)
    return error
