"""Blocks written for a checkpoint, each by the server that leads it, a few at a time.

A block waits in a queue for its turn; then it is copied, and what was copied is written beside the
event loop. So no more than ``STREAMS`` blocks are in memory twice. The next block does not wait for
the fsync, for what was written is the operating system's. In a job that goes by whole
rounds a request that would carry a block past the checkpoint's round waits until it is copied, and
the block is next in the queue. A block whose bytes are those of the checkpoint before gets that
one's file, under a second name.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from elasticps.checkpoint.directory import NAME
from elasticps.checkpoint.draft import is_draft
from elasticps.checkpoint.manifest import FileEntry, is_plain
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.tensor_file import Earlier, Row, write_rows
from elasticps.checkpoint.url import place_of
from elasticps.core.ids import BlockId, Round
from elasticps.errors import CheckpointError, ElasticError
from elasticps.server.hosted import Request
from elasticps.wire.frame import Status
from elasticps.wire.messages import EarlierFile, RefusalMeta, SavedMeta, StateMeta, encode
from elasticps.wire.tensors import dtype_named

log = logging.getLogger(__name__)

STREAMS = 2
"""How many blocks of a server are copied and on their way to the disk at a time."""
SYNCS = 2
"""How many of its files are fsynced at a time."""


@dataclass(slots=True, eq=False)
class Save:
    """One block's part in one checkpoint. ``take`` copies the block as it is now.

    ``limit`` is the round that the block must not go past before it is copied; None: any.
    """

    draft: str
    block: BlockId
    limit: Round | None
    take: Callable[[], tuple[StateMeta, int, bytes]]
    answer: Callable[[Request, SavedMeta], None]
    earlier: EarlierFile | None = None
    copied: bool = False
    result: SavedMeta | None = None
    error: str = ""
    asking: list[Request] = field(default_factory=list)
    held: list[tuple[Request, Callable[[], None]]] = field(default_factory=list)

    def holds(self, round_: Round) -> bool:
        """Must a request that proves ``round_`` wait?"""
        return self.limit is not None and not self.copied and round_ > self.limit

    def ask(self, request: Request) -> None:
        """Answer with the file, when it is written."""
        if self.result is not None:
            self.answer(request, self.result)
        elif self.error:
            request.answer(Status.REFUSED, encode(RefusalMeta(self.error)))
        else:
            self.asking.append(request)

    def copy(self) -> tuple[StateMeta, int, bytes]:
        """Copy the block, and let go on what has waited for that."""
        try:
            return self.take()
        finally:
            self._release()

    def settle(self, result: SavedMeta | None, error: str = "") -> None:
        """It is written, or is not to be."""
        self.result, self.error = result, error
        asking, self.asking = self.asking, []
        for request in asking:
            self.ask(request)

    def give_up(self) -> None:
        """This server does not lead the block any more."""
        self.copied = True
        waiting = [*self.asking, *(request for request, _ in self.held)]
        self.asking, self.held = [], []
        for request in waiting:
            request.answer(Status.FENCED)

    def _release(self) -> None:
        self.copied = True
        held, self.held = self.held, []
        for _, go_on in held:
            go_on()


class Saver:
    """The queue of one job's blocks on one server. ``root`` is where its checkpoints are."""

    def __init__(self, tasks: asyncio.TaskGroup, root: str) -> None:
        self._tasks = tasks
        self._root = root
        self._queue: list[Save] = []
        self._streams = 0
        self._syncs = asyncio.Semaphore(SYNCS)

    def add(self, save: Save) -> None:
        """Raises CheckpointError where nothing may be written there."""
        if not self._root or not is_draft(place_of(self._root), save.draft):
            raise CheckpointError(
                f"no checkpoint is made in {save.draft!r}", where=self._root, field="draft"
            )
        if save.earlier is not None and not _is_of_a_checkpoint(save.earlier):
            raise CheckpointError(
                f"{save.earlier.checkpoint}/{save.earlier.name} is no file of a checkpoint",
                where=self._root,
                field="earlier",
            )
        self._queue.append(save)
        if self._streams < STREAMS:
            self._streams += 1
            self._tasks.create_task(self._write_all())

    def hurry(self, save: Save) -> None:
        """Somebody waits for it."""
        if save in self._queue:
            self._queue.remove(save)
            self._queue.insert(0, save)

    async def _write_all(self) -> None:
        try:
            while self._queue:
                await self._write(self._queue.pop(0))
        finally:
            self._streams -= 1

    async def _write(self, save: Save) -> None:
        if save.copied:  # given up meanwhile
            return
        try:
            meta, version, payload = save.copy()
            directory = place_of(self._root) / save.draft
            earlier = self._path_of(save.earlier)
            work = (directory, save.block, meta, payload, earlier)
            entry = await asyncio.to_thread(write_block, *work)
        except FileNotFoundError:
            save.settle(None, self._not_shared(directory))
        except OSError as error:
            save.settle(None, f"block {save.block} cannot be written: {error.strerror}")
        except ElasticError as error:
            save.settle(None, str(error))
        else:
            numbers = entry.name, entry.size, entry.sha256
            saved = SavedMeta(*numbers, meta.round, version, meta.scalars)
            self._tasks.create_task(self._sync(save, directory / entry.name, saved))

    def _path_of(self, file: EarlierFile | None) -> Earlier | None:
        if file is None:
            return None
        return Earlier(place_of(self._root) / file.checkpoint / file.name, file.sha256)

    def _not_shared(self, directory: Path) -> str:
        """Why a draft, which the main worker made before it told of it, is not here."""
        return (
            f"{directory} is not on {socket.gethostname()}, and the main worker has made it:"
            f" {self._root} is to be the same directory on every machine, as on a network file"
            " system (field checkpoint_dir)"
        )

    async def _sync(self, save: Save, path: Path, saved: SavedMeta) -> None:
        try:
            async with self._syncs:
                await asyncio.to_thread(STORAGE.sync_file, path)
        except OSError as error:
            save.settle(None, f"block {save.block} cannot be written: {error.strerror}")
        else:
            save.settle(saved)


def _is_of_a_checkpoint(file: EarlierFile) -> bool:
    return NAME.fullmatch(file.checkpoint) is not None and is_plain(file.name)


def write_block(
    directory: Path,
    block: BlockId,
    meta: StateMeta,
    payload: bytes,
    earlier: Earlier | None = None,
) -> FileEntry:
    """Write a block's value and state, not durably yet, or link the ``earlier`` file that is the
    same. Raises OSError and CheckpointError."""
    rows: list[Row] = []
    numbers, offset = memoryview(payload), 0
    for row in meta.tensors:
        part = numbers[offset : offset + row.nbytes]
        rows.append(Row(row.key, dtype_named(row.dtype), row.shape, part))
        offset += row.nbytes
    # Another server may write the block too, when the first dies or is deposed meanwhile.
    name = f"block-{block:06d}-{secrets.token_hex(4)}.safetensors"
    return write_rows(directory / name, rows, durable=False, earlier=earlier)
