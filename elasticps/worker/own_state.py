"""What the shards have no part of, kept over a restart: a worker's buffers, frozen parameters and
random states."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from elasticps.api.pipeline import has_room
from elasticps.checkpoint.directory import candidates, complete
from elasticps.checkpoint.manifest import Manifest, read_manifest
from elasticps.checkpoint.tensor_file import can_hold
from elasticps.checkpoint.url import place_of
from elasticps.checkpoint.worker_file import WorkerState, print_of, read_worker
from elasticps.core.commands import Turn
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError, listed
from elasticps.wire.control_messages import JobInfo
from elasticps.worker import random_states

log = logging.getLogger(__name__)

Found = tuple[Manifest, WorkerState]
"""A checkpoint, and what it has of its worker."""


class OwnState:
    """``trained`` are the parameters that the shards have; ``turn`` gives the worker's part in the
    round to come. On the script's thread."""

    def __init__(
        self,
        model: torch.nn.Module,
        trained: Mapping[str, torch.Tensor],
        turn: Callable[[], Turn],
    ) -> None:
        self._model = getattr(model, "_orig_mod", model)
        self._trained = {id(item): name for name, item in trained.items()}
        self._turn = turn
        self._seed: int | None = None
        self._resumed: tuple[WorkerState, int] | None = None
        self._prints: dict[str, int] = {}

    def watch(self) -> None:
        """There will be checkpoints: look what is frozen, and say what can be in none."""
        own = self._own()
        self._prints = {name: print_of(item) for name, item in own.frozen.items()}
        if own.left_out:
            left_out = [f"{name} ({dtype})" for name, dtype in sorted(own.left_out.items())]
            log.warning("tensors that no checkpoint has: %s", listed(left_out))

    def take(self) -> WorkerState:
        """As it is now, copied; but for frozen parameters that are as they were before.

        Those may be large, and mostly nobody changes them: they are written as they lie.
        """
        own = self._own()
        prints = {name: print_of(item) for name, item in own.frozen.items()}
        still = {name: item for name, item in prints.items() if self._prints.get(name) == item}
        self._prints = prints
        changed = {name: item for name, item in own.frozen.items() if name not in still}
        return WorkerState(
            buffers=_copied(own.buffers),
            frozen={**own.frozen, **_copied(changed)},
            tied=own.tied,
            random=random_states.taken(),
            left_out=own.left_out,
            prints=still,
        )

    def resume(self, job: JobInfo, begun: Round) -> None:
        """Take buffers and frozen parameters from the checkpoint of the round ``begun``, which the
        job went on from.

        A worker that joins the job later takes those of the newest checkpoint that the job has
        made itself until then, if any. The random states are put back by ``begin_reading``. Raises
        CheckpointError for tensors of another shape, and where they cannot be read: with those of
        another round, or with none, the model would be none that there ever was.
        """
        own, last = self._own(), Round(self._turn().round - 1)
        place = place_of(job.resume)
        try:
            found = _newest_own(job, begun, last) or _of_round(place, begun)
        except CheckpointError as error:
            if last == begun or own.buffers or own.frozen:
                raise
            log.warning("the random states stay as they are: %s", error)
            return
        manifest, state = found
        here = {**own.buffers, **own.frozen}
        there = {**state.buffers, **state.frozen}
        both = here.keys() & there.keys()
        for name in both:
            _check_alike(name, there[name], here[name], place)
        known = own.tied.keys() | self._trained.values()
        missing = sorted((here.keys() ^ there.keys()) - known)
        if missing:
            log.warning("tensors that model and checkpoint have not both: %s", listed(missing))
        others = sorted(
            name for name in own.frozen.keys() & both if not _same(there[name], own.frozen[name])
        )
        if others:
            log.warning(
                "frozen parameters have other values in the checkpoint, which are taken: %s",
                listed([f"{name} {_kind(own.frozen[name])}" for name in others]),
            )
        with torch.no_grad():
            for name in both:
                here[name].copy_(there[name])
        if state.random:
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

    def _own(self) -> WorkerState:
        """The tensors themselves, each under the first of its names; no random states.

        Without those of layers that are in other workers.
        """
        first = dict(self._trained)
        own: dict[str, torch.Tensor] = {}
        tied: dict[str, str] = {}
        left_out: dict[str, str] = {}
        for name, item in self._model.state_dict(keep_vars=True).items():
            if not isinstance(item, torch.Tensor):
                continue
            known = first.setdefault(id(item), name)
            if known != name and (id(item) in self._trained or known in own):
                tied[name] = known
            elif id(item) in self._trained or not has_room(item):
                continue
            elif can_hold(item.dtype):
                own[name] = item
            else:
                left_out[name] = _dtype_name(item)
        parameters = {id(item) for item in self._model.parameters()}
        frozen = {name: item for name, item in own.items() if id(item) in parameters}
        buffers = {name: item for name, item in own.items() if name not in frozen}
        return WorkerState(buffers=buffers, frozen=frozen, tied=tied, random={}, left_out=left_out)


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: item.detach().to("cpu", copy=True) for name, item in tensors.items()}


def _newest_own(job: JobInfo, begun: Round, last: Round) -> Found | None:
    """Of the newest checkpoint that ``job`` itself has made, until the round ``last``."""
    if not job.checkpoint_dir or last <= begun:
        return None
    root = place_of(job.checkpoint_dir)
    try:
        there = [path for number, path in complete(root) if begun < number <= last]
    except OSError as error:
        log.warning("%s cannot be read: %s", root, error.strerror)
        return None
    for directory in there:
        try:
            manifest = read_manifest(directory)
            if manifest.owner == job.identity:
                return manifest, read_worker(directory, manifest)
        except CheckpointError as error:
            log.warning("%s is damaged (%s)", directory, error.what)
    return None


def _of_round(place: Path, number: Round) -> Found:
    """Of the checkpoint that whoever gave the blocks their values has chosen.

    Raises CheckpointError where it is not there, or cannot be read, any more.
    """
    for directory in candidates(place):
        try:
            manifest = read_manifest(directory)
        except CheckpointError:  # it was not chosen: that has been told
            continue
        if manifest.round == number:
            return manifest, read_worker(directory, manifest)
    raise CheckpointError(
        f"the checkpoint of round {number}, which the job went on from, is not here any more",
        where=str(place),
        field="resume",
    )


def _check_alike(name: str, there: torch.Tensor, here: torch.Tensor, place: Path) -> None:
    if (there.shape, there.dtype) != (here.shape, here.dtype):
        raise CheckpointError(
            f"the checkpoint is of another model: {name} is {_kind(there)} there,"
            f" {_kind(here)} here",
            where=str(place),
            field=name,
        )


def _same(there: torch.Tensor, here: torch.Tensor) -> bool:
    return torch.equal(there, here.detach().to(there.device))


def _kind(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {_dtype_name(tensor)}"


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
