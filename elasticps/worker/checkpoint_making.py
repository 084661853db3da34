"""One checkpoint while it is made: the shard servers write their blocks, the main worker commits.

In sync mode the cut needs one word: until the main worker votes for the next round, every block is
at the one that it has just read. Each server is told that before the vote, and holds whatever would
carry a block further until the block is copied. In the other modes, and with backup workers, each
block is copied at a moment of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from elasticps.api.plugins import CODECS, OPTIMIZERS, STRATEGIES, discover
from elasticps.checkpoint.directory import complete, prune
from elasticps.checkpoint.draft import Draft
from elasticps.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    BlockEntry,
    CutKind,
    DataPosition,
    FileEntry,
    Manifest,
    read_manifest,
)
from elasticps.checkpoint.snapshot import not_written
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.tensor_file import Earlier
from elasticps.checkpoint.url import place_of
from elasticps.checkpoint.worker_file import WorkerState, write_frozen, write_worker
from elasticps.core.blocks import Model
from elasticps.core.commands import Cut
from elasticps.core.consistency import Consistency
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.messages import EarlierFile, PullMeta, SavedMeta
from elasticps.worker.block_calls import SaveOrder
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.exchange import Exchange
from elasticps.worker.parameters import BlockMemory

log = logging.getLogger(__name__)

Tell = Callable[[], Awaitable[None]]
TakeOwn = Callable[[], WorkerState]


class Making:
    """``begin`` one on the script's thread, ``end`` it on the data loop.

    ``check`` raises CheckpointError where the place is another job's.
    """

    def __init__(
        self,
        model: Model,
        job: JobInfo,
        round_: Round,
        take_own: TakeOwn | None = None,
        *,
        check: Callable[[], None],
    ) -> None:
        self.job = job
        self.round = round_
        self.draft = Draft(place_of(job.checkpoint_dir), round_)
        self._model = model
        self._exact = job.consistency is Consistency.SYNC and not job.backup_workers
        self._order = SaveOrder(draft=self.draft.directory.name, exact=self._exact, earlier={})
        self._proof = PullMeta()
        self._cut: Cut | None = None
        self._take_own = take_own
        self._check = check
        self._own: WorkerState | None = None
        self._earlier_frozen: Earlier | None = None

    def is_made(self) -> bool:
        """The main worker before this one may have made it, and died before it could say so.

        Raises CheckpointError where there is another job's.
        """
        place = self.draft.place
        if not STORAGE.is_file(place / MANIFEST):
            return False
        theirs = read_manifest(place)
        if theirs.owner != self.job.identity:
            raise CheckpointError(
                f"there is one of another job, {theirs.job}",
                where=str(place),
                field="checkpoint_dir",
                hint="move it away, or choose another directory",
            )
        return True

    def begin(self, exchange: Exchange, loop: DataLoop, memory: Sequence[BlockMemory]) -> None:
        """Tell all who write the blocks in ``memory``.

        Raises BlockUnavailable and CheckpointError; nothing is left then.
        """
        try:
            self.draft.begin()
            self._own = self._take_own() if self._take_own is not None else None
            self._find_earlier(memory)
            self._proof, self._cut = loop.call(self._told(exchange))
        except OSError as error:
            raise not_written(error, self.draft.place) from error
        except BaseException:
            self.draft.drop()
            raise

    def _find_earlier(self, memory: Sequence[BlockMemory]) -> None:
        """What the newest checkpoint that is there has of each block, and of what is frozen."""
        there = complete(place_of(self.job.checkpoint_dir))
        if not there:
            return
        number, newest = there[0]
        if number > self.round:
            raise self._not_alone(number, newest)
        try:
            manifest = read_manifest(newest)
        except CheckpointError as error:
            log.warning("job=%s every block is written: %s", self.job.name, error)
            return
        files = {(row.parameter, row.start, row.stop): row.file for row in manifest.blocks}
        blocks = {item.block.id: self._part_of(item) for item in memory}
        earlier = {
            block: EarlierFile(newest.name, files[part].name, files[part].xxh128)
            for block, part in blocks.items()
            if part in files
        }
        self._order = replace(self._order, earlier=earlier)
        if manifest.frozen is not None:
            self._earlier_frozen = Earlier(newest / manifest.frozen.name, manifest.frozen.xxh128)

    def _not_alone(self, number: Round, place: Path) -> CheckpointError:
        """What to raise where a checkpoint of a later round is: it would be taken for the newest,
        and this job's for the old ones."""
        try:
            whose = f"job {read_manifest(place).job}"
        except CheckpointError:
            whose = "an unknown job"
        return CheckpointError(
            f"there is a checkpoint of round {number} of {whose}, and this job is at {self.round}",
            where=str(place),
            field="checkpoint_dir",
            limit="one job at a time",
            hint="move it away, or choose another directory",
        )

    async def _told(self, exchange: Exchange) -> tuple[PullMeta, Cut]:
        proof, cut = await exchange.begin_save(self._order)
        if self._exact and cut.round != self.round:
            raise CheckpointError(
                f"the job is at round {cut.round}: the blocks may be of several rounds",
                where="the job's ledger",
            )
        return proof, cut

    async def end(self, exchange: Exchange) -> None:
        """Wait until all is written, and commit it. Raises BlockUnavailable and CheckpointError."""
        try:
            saved = await exchange.saved(self._proof, self._order)
            await asyncio.to_thread(self._commit, saved)
        except OSError as error:
            raise not_written(error, self.draft.place) from error
        finally:
            self.draft.drop()

    def _commit(self, saved: Sequence[tuple[BlockMemory, SavedMeta]]) -> None:
        # It may have been taken over while the blocks were written.
        self._check()
        blocks = tuple(self._entry(memory, meta) for memory, meta in saved)
        self.draft.check([row.file for row in blocks])
        manifest = self._manifest(blocks)
        if self._own is not None:
            manifest = self._with_own(manifest, self._own)
        self.draft.commit(manifest)
        prune(place_of(self.job.checkpoint_dir), self.job.checkpoint_keep, made=self.round)

    def _with_own(self, manifest: Manifest, own: WorkerState) -> Manifest:
        directory = self.draft.directory
        return msgspec.structs.replace(
            manifest,
            worker=write_worker(directory, own),
            frozen=write_frozen(directory, own, self._earlier_frozen),
            tied=dict(own.tied),
            left_out=dict(own.left_out),
        )

    def _entry(self, memory: BlockMemory, saved: SavedMeta) -> BlockEntry:
        parameter, start, stop = self._part_of(memory)
        return BlockEntry(
            parameter=parameter,
            start=start,
            stop=stop,
            round=saved.round,
            version=saved.version,
            file=FileEntry(name=saved.name, size=saved.size, xxh128=saved.xxh128),
            scalars=saved.scalars,
        )

    def _part_of(self, memory: BlockMemory) -> tuple[str, int, int]:
        block = memory.block
        return self._model.parameters[block.parameter].name, block.start, block.stop

    def _manifest(self, blocks: tuple[BlockEntry, ...]) -> Manifest:
        cut = self._cut
        assert cut is not None
        return Manifest(
            format=FORMAT,
            elasticps=version("elasticps"),
            torch=str(torch.__version__),
            plugins=_plugins(self.job, self._model),
            created_unix=time.time(),
            job=self.job.name,
            owner=self.job.identity,
            round=self.round,
            cut=CutKind.ROUND if self._exact else CutKind.BLOCK,
            model=self._model,
            data=DataPosition.at(cut.data, cut.supply) if cut.data else None,
            blocks=blocks,
        )


def _plugins(job: JobInfo, model: Model) -> dict[str, str]:
    """What computed the job, and the version of what it came with."""
    chosen = ((OPTIMIZERS, model.optimizer), (STRATEGIES, job.strategy), (CODECS, job.codec))
    return {
        f"{group.removeprefix('elasticps.')}: {text}": f"{plugin.distribution} {plugin.version}"
        for group, text in chosen
        for plugin in discover(group)
        if plugin.name == text.partition(":")[0]
    }
