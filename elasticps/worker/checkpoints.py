"""A job's checkpoints as its main worker makes them, and how a job goes on from one.

The main worker says when, and commits what the shard servers have written (``checkpoint_making``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec
import torch

from elasticps.checkpoint.manifest import check_same_model
from elasticps.checkpoint.other_optimizer import for_optimizer
from elasticps.checkpoint.ownership import Owner, Ownership
from elasticps.checkpoint.remote_ownership import RemoteOwnership, ownership_of
from elasticps.checkpoint.snapshot import read_newest
from elasticps.checkpoint.url import place_of
from elasticps.core.blocks import Model
from elasticps.core.commands import Cut
from elasticps.core.ids import Round
from elasticps.core.ranges import Supply
from elasticps.core.records import Attempts
from elasticps.errors import BlockUnavailable, CheckpointError, ElasticError
from elasticps.wire.control_messages import CheckpointReport, JobInfo
from elasticps.worker.checkpoint_making import Making, TakeOwn, Tell
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.exchange import Exchange
from elasticps.worker.optimizer_state import States, by_block
from elasticps.worker.parameters import BlockMemory

log = logging.getLogger(__name__)


class Checkpoints:
    """Reads and writes the checkpoints of one job. ``report`` says what became of the newest,
    ``attempts`` of all that this worker was to make. ``take_own``: what this worker puts into one.
    """

    def __init__(self, model: Model, memory: Sequence[BlockMemory]) -> None:
        self.report: CheckpointReport | None = None
        self.attempts = Attempts()
        self.take_own: TakeOwn | None = None
        self._ownership: Ownership | RemoteOwnership | None = None
        self._answering = 0
        self._seen: Round | None = None
        self._told_late = False
        self._under_way: Future[None] | None = None
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
        newest = read_newest(place_of(job.resume))
        found = for_optimizer(
            newest.snapshot,
            self._model,
            newest.directory,
            reset=job.resume_reset_optimizer,
            strategy=job.strategy,
        )
        for damaged, error in newest.damaged:
            log.warning(
                "job=%s %s is damaged (%s): going on from %s",
                *(job.name, damaged, error.what, newest.directory),
            )
        check_same_model(found.model, self._model, newest.directory)
        if job.checkpoint_dir:
            self._owned(job).begin(found.round, [path for path, _ in newest.damaged])
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(found.values[name])
        self._seen = found.round
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
        if exchange.commit is None and self._seen is None:
            self._seen = Round(0)
        if job.checkpoint_dir and _is_main(exchange) and exchange.commit is None:
            self._owned(job).begin(Round(0))

    def due(self, job: JobInfo, exchange: Exchange, *, published: bool) -> bool:
        """Is it for this worker to make one now, between two rounds?

        Where the shards have not what the workers have, it is late: after the next ``published``
        round.
        """
        if not job.checkpoint_dir or exchange.commit is None:
            return False
        round_, every = exchange.commit.round, job.checkpoint_every
        seen = round_ - 1 if self._seen is None else self._seen
        passed = every > 0 and round_ // every > seen // every
        if published:
            self._seen = round_
        if not _is_main(exchange):
            return False
        asked = job.checkpoint_request > self._answering
        if (passed or asked) and not published:
            self._tell_late(job, round_, asked=asked)
        return published and (passed or asked)

    def _tell_late(self, job: JobInfo, round_: Round, *, asked: bool) -> None:
        if asked:
            waits_for = f"the next round that strategy {job.strategy} gives to the shards"
            before = self.report or CheckpointReport()
            self.report = msgspec.structs.replace(before, waits_for=waits_for)
        if not self._told_late:
            self._told_late = True
            log.warning(
                "job=%s the checkpoint of round %d waits: strategy %s has not given that round to "
                "the shards; such are made after the next that it gives",
                *(job.name, round_, job.strategy),
            )

    def make(self, job: JobInfo, exchange: Exchange, loop: DataLoop, tell: Tell) -> None:
        """Begin one, as of now: the shard servers write it while the training goes on.

        Where it cannot be made the report says why; ``tell`` sends the report. One that is still
        being written is waited for first.
        """
        self.finish()
        self._answering = job.checkpoint_request
        try:
            check = self._owned(job).check
            check()
            round_ = exchange.commit.round if exchange.commit else Round(0)
            making = Making(self._model, job, round_, self.take_own, check=check)
            if making.is_made():
                self._made(making)
            else:
                making.begin(exchange, loop, self._memory)
                self._under_way = loop.start(self._written(making, exchange, tell))
        except (BlockUnavailable, CheckpointError) as error:
            self._failed(job, error)

    def finish(self) -> None:
        """Wait for the one that is being written, if there is one. Not on the data loop."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    async def _written(self, making: Making, exchange: Exchange, tell: Tell) -> None:
        try:
            await making.end(exchange)
        except (BlockUnavailable, CheckpointError) as error:
            self._failed(making.job, error)
        else:
            self._made(making)
        await tell()

    def _made(self, making: Making) -> None:
        self.report = CheckpointReport(
            directory=str(making.draft.place), round=making.round, request=self._answering
        )
        self.attempts = self.attempts.plus(Attempts(made=1))

    def _failed(self, job: JobInfo, error: ElasticError) -> None:
        log.error("job=%s no checkpoint: %s", job.name, error)
        before = self.report or CheckpointReport()
        self.report = msgspec.structs.replace(
            before, request=self._answering, error=str(error), waits_for=""
        )
        reason, _, _ = str(error).partition("\n")
        self.attempts = self.attempts.plus(Attempts(failed=1, error=reason))

    def close(self) -> None:
        """Leave the directory to others. Idempotent."""
        if self._ownership is not None:
            self._ownership.close()

    def _owned(self, job: JobInfo) -> Ownership | RemoteOwnership:
        if self._ownership is None:
            owner = Owner(job.identity, job.name)
            self._ownership = ownership_of(place_of(job.checkpoint_dir), owner)
        return self._ownership


def _is_main(exchange: Exchange) -> bool:
    return exchange.turn is not None and exchange.turn.rank == 0
