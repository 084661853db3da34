"""A job's checkpoints as its main worker makes them, and how a job goes on from one.

In sync mode a cut needs no protocol: until the main worker votes for the next round, every block
is at the one that it has just read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from elasticps.checkpoint.directory import newest, path_of, point_to_older, prune
from elasticps.checkpoint.manifest import (
    MANIFEST,
    DataPosition,
    check_same_model,
    read_manifest,
)
from elasticps.checkpoint.ownership import Owner, Ownership
from elasticps.checkpoint.snapshot import Snapshot, read, write
from elasticps.core.blocks import Model
from elasticps.core.commands import Cut
from elasticps.core.consistency import Consistency
from elasticps.core.ids import Round
from elasticps.core.ranges import Supply
from elasticps.core.records import Attempts
from elasticps.errors import BlockUnavailable, CheckpointError
from elasticps.wire.messages import CheckpointReport, JobInfo
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.exchange import Exchange
from elasticps.worker.optimizer_state import (
    States,
    by_block,
    by_parameter,
    values_by_parameter,
)
from elasticps.worker.parameters import BlockMemory

log = logging.getLogger(__name__)


class Checkpoints:
    """Reads and writes the checkpoints of one job. ``report`` says what became of the newest,
    ``attempts`` of all that this worker was to make.
    """

    def __init__(self, model: Model, memory: Sequence[BlockMemory]) -> None:
        self.report: CheckpointReport | None = None
        self.attempts = Attempts()
        self._ownership: Ownership | None = None
        self._model = model
        self._memory = memory
        self._parameters = {
            model.parameters[item.block.parameter].name: item.parameter for item in memory
        }

    # -- going on from one ----------------------------------------------------------------------

    def resume(self, job: JobInfo) -> tuple[States, Cut]:
        """Take the parameters' values from the checkpoint that ``job`` resumes.

        Returns each block's state and where the job stood. Raises CheckpointError.
        """
        _check_in_step("resume", job.consistency is Consistency.SYNC, "sync consistency")
        directory = newest(Path(job.resume))
        found = _read_whole(directory)
        check_same_model(found.model, self._model, directory)
        if job.checkpoint_dir:
            self._owned(job).begin(found.round)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(found.values[name])
        states = by_block(
            self._memory, {self._parameters[name]: state for name, state in found.state.items()}
        )
        data = found.data
        if data is None:
            return states, Cut(found.round, None, Supply())
        return states, Cut(found.round, data.data, data.supply)

    # -- making one -----------------------------------------------------------------------------

    def check(self, job: JobInfo, exchange: Exchange) -> None:
        """Raise CheckpointError where the checkpoints that ``job`` wants can never be made."""
        if not job.checkpoint_dir:
            return
        in_step = job.consistency is Consistency.SYNC and not job.backup_workers
        _check_in_step("checkpoint_dir", in_step, "sync consistency without backup workers")
        if _is_main(exchange) and exchange.commit is None:
            self._owned(job).begin(Round(0))

    def due(self, job: JobInfo, exchange: Exchange) -> bool:
        """Is it for this worker to make one now, between two rounds?

        After a round for which nothing was pushed the shards have not what the workers have.
        """
        if not job.checkpoint_dir or not _is_main(exchange) or exchange.commit is None:
            return False
        if exchange.commit.apart:
            return False
        answered = self.report.request if self.report else 0
        every = job.checkpoint_every
        return job.checkpoint_request > answered or (
            every > 0 and exchange.commit.round % every == 0
        )

    def make(self, job: JobInfo, exchange: Exchange, loop: DataLoop) -> None:
        """Write one; the training goes on where it cannot be written, and the report says why."""
        before = self.report or CheckpointReport()
        self.report = msgspec.structs.replace(before, request=job.checkpoint_request, error="")
        root = Path(job.checkpoint_dir)
        try:
            self._owned(job).check()
            states, cut = loop.call(_read(exchange))
            place = path_of(root, cut.round)
            if not _is_made(place, job):
                write(root, self._snapshot(job, states, cut), version=version("elasticps"))
            self.report = msgspec.structs.replace(
                self.report, directory=str(place), round=cut.round
            )
            prune(root)
        except (BlockUnavailable, CheckpointError) as error:
            log.error("job=%s no checkpoint: %s", job.name, error)
            self.report = msgspec.structs.replace(self.report, error=str(error))
            reason, _, _ = str(error).partition("\n")
            self.attempts = self.attempts.plus(Attempts(failed=1, error=reason))
        else:
            self.attempts = self.attempts.plus(Attempts(made=1))

    def close(self) -> None:
        """Leave the directory to others. Idempotent."""
        if self._ownership is not None:
            self._ownership.close()

    def _owned(self, job: JobInfo) -> Ownership:
        if self._ownership is None:
            owner = Owner(job.identity, job.name)
            self._ownership = Ownership(Path(job.checkpoint_dir), owner)
        return self._ownership

    def _snapshot(self, job: JobInfo, states: States, cut: Cut) -> Snapshot:
        state = by_parameter(self._memory, states)
        served = values_by_parameter(self._memory, states)
        return Snapshot(
            job=job.name,
            owner=job.identity,
            round=cut.round,
            model=self._model,
            data=DataPosition.at(cut.data, cut.supply) if cut.data else None,
            values={name: served[parameter] for name, parameter in self._parameters.items()},
            state={
                name: state[parameter]
                for name, parameter in self._parameters.items()
                if parameter in state
            },
        )


def _read_whole(directory: Path) -> Snapshot:
    """Raises CheckpointError, with the next older one to use, for one that is damaged."""
    try:
        return read(directory)
    except CheckpointError as error:
        point_to_older(error, directory)
        raise


def _is_made(place: Path, job: JobInfo) -> bool:
    """The main worker before this one may have made it, and died before it could say so."""
    if not (place / MANIFEST).is_file():
        return False
    theirs = read_manifest(place)
    if theirs.owner != job.identity:
        raise CheckpointError(
            f"there is one of another job, {theirs.job}",
            where=str(place),
            field="checkpoint_dir",
            hint="move it away, or choose another directory",
        )
    return True


def _check_in_step(field: str, in_step: bool, limit: str) -> None:
    if not in_step:
        raise CheckpointError(
            "a checkpoint is of one round, and the job's workers are not all in the same",
            field=field,
            limit=limit,
        )


def _is_main(exchange: Exchange) -> bool:
    return exchange.turn is not None and exchange.turn.rank == 0


async def _read(exchange: Exchange) -> tuple[States, Cut]:
    """Every block's state, then the job's: which shows that no round ended in between."""
    states = await exchange.states()
    cut = await exchange.cut()
    if exchange.commit is None or cut.round != exchange.commit.round:
        raise CheckpointError(
            f"the job is at round {cut.round}: the blocks' states may be of several rounds",
            where="the job's ledger",
        )
    return states, cut
