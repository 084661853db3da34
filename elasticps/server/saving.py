"""Blocks written for a checkpoint, each by the server that leads it, a few at a time.

A block waits in a queue for its turn. Then it is copied and given to the operating system, beside
the event loop; so no more than ``STREAMS`` blocks are in memory twice. In a job that goes by whole
rounds a request that would carry a block past the checkpoint's round waits until it is copied, and
the block is next in the queue. The rest, the hash and the fsync, holds up nobody: it is done when
the workers leave the server time (``pace``). A block whose bytes are those of the checkpoint before
gets that one's file, under a second name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from elasticps.checkpoint.directory import NAME
from elasticps.checkpoint.draft import is_draft
from elasticps.checkpoint.manifest import FileEntry, is_plain
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.tensor_file import (
    Earlier,
    Row,
    bytes_of,
    is_hashed_first,
    settle_file,
    write_rows,
    write_unhashed,
)
from elasticps.checkpoint.url import place_of
from elasticps.core.ids import BlockId, Round
from elasticps.errors import CheckpointError, ElasticError
from elasticps.server.hosted import Request
from elasticps.server.pace import Pace
from elasticps.wire.frame import Status
from elasticps.wire.messages import EarlierFile, RefusalMeta, SavedMeta, StateMeta, encode
from elasticps.wire.tensors import dtype_named

log = logging.getLogger(__name__)

STREAMS = 2
"""How many blocks of a server are copied and on their way to the disk at a time."""
SYNCS = 3
"""How many of its files are hashed and fsynced at a time."""
NICENESS = 10
"""Of the threads that do so: who trains goes first where there are too few cores."""


@dataclass(slots=True, eq=False)
class Save:
    """One block's part in one checkpoint. ``take`` gives the block as it is now, not copied.

    ``limit`` is the round that the block must not go past before it is copied; None: any.
    """

    draft: str
    block: BlockId
    limit: Round | None
    take: Callable[[], tuple[StateMeta, int, list[torch.Tensor]]]
    answer: Callable[[Request, SavedMeta], None]
    earlier: EarlierFile | None = None
    copied: bool = False
    given_up: bool = False
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

    async def copy(self, room: Room) -> tuple[StateMeta, int, memoryview]:
        """Copy the block, and let go on what has waited for that."""
        try:
            meta, version, tensors = self.take()
            if self.limit is None:  # nothing keeps the block as it is meanwhile
                return meta, version, room.filled(tensors)
            return meta, version, await asyncio.to_thread(room.filled, tensors)
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
        self.copied = self.given_up = True
        waiting = [*self.asking, *(request for request, _ in self.held)]
        self.asking, self.held = [], []
        for request in waiting:
            request.answer(Status.FENCED)

    def _release(self) -> None:
        self.copied = True
        held, self.held = self.held, []
        for _, go_on in held:
            go_on()


class Room:
    """Memory for a copy of one block after another."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def filled(self, tensors: Sequence[torch.Tensor]) -> memoryview:
        """Their bytes, one tensor's behind the other's. The next call overwrites them."""
        size = sum(tensor.nbytes for tensor in tensors)
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        start = 0
        for tensor in tensors:
            part = self._bytes[start : start + tensor.nbytes]
            part.copy_(tensor.contiguous().reshape(-1).view(torch.uint8))
            start += tensor.nbytes
        return bytes_of(self._bytes[:size])


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A block's file that is not durable yet. ``entry``: None, unless it has been hashed."""

    path: Path
    size: int
    entry: FileEntry | None


class Saver:
    """The queue of one job's blocks on one server. ``root`` is where its checkpoints are.

    ``pace`` is to be told of what workers ask for.
    """

    def __init__(self, tasks: asyncio.TaskGroup, root: str) -> None:
        self.pace = Pace()
        self._tasks = tasks
        self._root = root
        self._draft = ""
        self._queue: list[Save] = []
        self._streams = 0
        self._written: list[tuple[Save, Written, Callable[[FileEntry], SavedMeta]]] = []
        self._settling = 0

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
        if save.draft != self._draft:
            self._draft = save.draft
            self.pace.begin()
        self.pace.add()
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
        room = Room()
        try:
            while self._queue:
                await self._write(self._queue.pop(0), room)
        finally:
            self._streams -= 1
        # Not before all is copied: a write waits for the journal that an fsync commits.
        while not self._streams and self._settling < min(SYNCS, len(self._written)):
            self._settling += 1
            self._tasks.create_task(self._settle_all())

    async def _write(self, save: Save, room: Room) -> None:
        if save.copied:  # given up meanwhile
            return
        directory = place_of(self._root) / save.draft
        try:
            meta, version, payload = await save.copy(room)
            if save.given_up:  # it may have changed while it was copied
                return
            work = (directory, save.block, meta, payload, self._path_of(save.earlier))
            written = await asyncio.to_thread(write_block, *work)
        except FileNotFoundError:
            save.settle(None, self._not_shared(directory))
        except OSError as error:
            save.settle(None, f"block {save.block} cannot be written: {error.strerror}")
        except ElasticError as error:
            save.settle(None, str(error))
        else:
            self._written.append((save, written, partial(_saved, meta, version)))

    async def _settle_all(self) -> None:
        thread = ThreadPoolExecutor(1, "settle", initializer=_let_others_go_first)
        try:
            while self._written:
                if wait_s := self.pace.wait_s():
                    await asyncio.sleep(wait_s)
                else:
                    await self._settle(*self._written.pop(0), thread)
        finally:
            self._settling -= 1
            thread.shutdown(wait=False)

    async def _settle(
        self,
        save: Save,
        written: Written,
        saved: Callable[[FileEntry], SavedMeta],
        thread: ThreadPoolExecutor,
    ) -> None:
        work = (written, self._path_of(save.earlier))
        try:
            entry = await asyncio.get_running_loop().run_in_executor(thread, settle_block, *work)
        except OSError as error:
            save.settle(None, f"block {save.block} cannot be written: {error.strerror}")
        except ElasticError as error:
            save.settle(None, str(error))
        else:
            save.settle(saved(entry))

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


def _saved(meta: StateMeta, version: int, entry: FileEntry) -> SavedMeta:
    return SavedMeta(entry.name, entry.size, entry.sha256, meta.round, version, meta.scalars)


def _let_others_go_first() -> None:
    if sys.platform == "linux":  # where it is this thread's alone
        os.nice(NICENESS)


def _is_of_a_checkpoint(file: EarlierFile) -> bool:
    return NAME.fullmatch(file.checkpoint) is not None and is_plain(file.name)


def write_block(
    directory: Path,
    block: BlockId,
    meta: StateMeta,
    payload: memoryview,
    earlier: Earlier | None = None,
) -> Written:
    """Write a block's value and state, for ``settle_block``. Raises OSError and CheckpointError.

    One that the checkpoint before had found to be as it was is hashed first: it may be so again.
    """
    rows: list[Row] = []
    offset = 0
    for row in meta.tensors:
        part = payload[offset : offset + row.nbytes]
        rows.append(Row(row.key, dtype_named(row.dtype), row.shape, part))
        offset += row.nbytes
    # Another server may write the block too, when the first dies or is deposed meanwhile.
    path = directory / f"block-{block:06d}-{secrets.token_hex(4)}.safetensors"
    if is_hashed_first(path, earlier):
        entry = write_rows(path, rows, durable=False, earlier=earlier)
        return Written(path=directory / entry.name, size=entry.size, entry=entry)
    return Written(path=path, size=write_unhashed(path, rows), entry=None)


def settle_block(written: Written, earlier: Earlier | None) -> FileEntry:
    """Hash what was written, unless it is, and make it durable; or link the ``earlier`` file that
    is the same. Raises OSError and CheckpointError."""
    if written.entry is None:
        return settle_file(written.path, written.size, earlier=earlier)
    STORAGE.sync_file(written.path)
    return written.entry
