"""What the shards have no part of: a worker's buffers and random states, kept over a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from elasticps.api.pipeline import has_room
from elasticps.checkpoint.directory import candidates
from elasticps.checkpoint.manifest import Manifest, read_manifest
from elasticps.checkpoint.tensor_file import can_hold
from elasticps.checkpoint.worker_file import WorkerState, read_worker
from elasticps.core.commands import Turn
from elasticps.errors import CheckpointError, listed
from elasticps.worker import random_states

log = logging.getLogger(__name__)


class OwnState:
    """``turn`` gives the worker's part in the round to come. On the script's thread."""

    def __init__(self, model: torch.nn.Module, turn: Callable[[], Turn]) -> None:
        self._model = getattr(model, "_orig_mod", model)
        self._turn = turn
        self._seed: int | None = None
        self._resumed: tuple[WorkerState, int] | None = None

    def take(self) -> WorkerState:
        """As it is now, copied."""
        buffers = {name: item.detach().cpu().clone() for name, item in self._buffers().items()}
        return WorkerState(buffers=buffers, random=random_states.taken())

    def resume(self, place: Path) -> None:
        """Take the buffers from the checkpoint in ``place`` that the job went on from.

        For a worker that joins the job later that is the newest of the rounds before. The random
        states are put back by ``begin_reading``. Raises CheckpointError for buffers of another
        shape.
        """
        found = _newest_until(place, self._turn().round - 1)
        if found is None:
            return
        manifest, state = found
        own = self._buffers()
        for name, item in own.items():
            if name in state.buffers:
                _check_alike(name, state.buffers[name], item, place)
        missing = sorted(own.keys() ^ state.buffers.keys())
        if missing:
            log.warning("buffers that model and checkpoint have not both: %s", listed(missing))
        with torch.no_grad():
            for name in own.keys() & state.buffers.keys():
                own[name].copy_(state.buffers[name])
        self._resumed = state, manifest.round

    def seed_rounds(self, seed: int) -> None:
        """``Run.seed``."""
        self._seed = seed
        self._seed_round(seed)

    def begin_reading(self) -> None:
        """The script is about to train: what it has drawn so far was for its own beginning."""
        resumed, self._resumed = self._resumed, None
        if self._seed is not None:
            self._seed_round(self._seed)
        elif resumed is not None and resumed[1] == self._turn().round - 1:
            self._go_on_from(resumed[0])

    def end_round(self) -> None:
        if self._seed is not None:
            self._seed_round(self._seed)

    def _seed_round(self, seed: int) -> None:
        turn = self._turn()
        random_states.seed_all(random_states.seed_for(seed, turn.rank, turn.round))

    def _go_on_from(self, state: WorkerState) -> None:
        """The main worker from the random states themselves, others by a seed from them."""
        if self._turn().rank:
            self._seed_round(random_states.seed_of(state.random))
            return
        try:
            random_states.put_back(state.random)
        except (TypeError, ValueError, RuntimeError) as error:
            log.warning("the random states are of another version (%s): seeded anew", error)
            self._seed_round(random_states.seed_of(state.random))

    def _buffers(self) -> dict[str, torch.Tensor]:
        """By name; without those of layers that are in other workers, and of complex numbers."""
        parameters = {id(item) for item in self._model.parameters()}
        return {
            name: item
            for name, item in self._model.state_dict(keep_vars=True).items()
            if isinstance(item, torch.Tensor) and id(item) not in parameters
            if has_room(item) and can_hold(item.dtype)
        }


def _newest_until(place: Path, round_: int) -> tuple[Manifest, WorkerState] | None:
    """None where no checkpoint until that round has a worker's state."""
    for directory in candidates(place):
        try:
            manifest = read_manifest(directory)
            state = read_worker(directory, manifest) if manifest.round <= round_ else None
        except CheckpointError as error:
            log.warning("%s is damaged (%s)", directory, error.what)
            continue
        if state is not None:
            return manifest, state
    return None


def _check_alike(name: str, there: torch.Tensor, here: torch.Tensor, place: Path) -> None:
    if (there.shape, there.dtype) != (here.shape, here.dtype):
        raise CheckpointError(
            f"the checkpoint is of another model: the buffer {name} is {_kind(there)} there,"
            f" {_kind(here)} here",
            where=str(place),
            field=name,
        )


def _kind(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
