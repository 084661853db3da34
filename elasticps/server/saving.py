"""Blocks written for a checkpoint, each by the server that leads it, a few at a time.

A block waits in a queue for its turn. Then it is copied and given to the operating system, beside
the event loop; so no more than ``STREAMS`` blocks are in memory twice. In a job that goes by whole
rounds a request that would carry a block past the checkpoint's round waits until it is copied, and
the block is next in the queue. The fsyncs hold up nobody: each file's begins as soon as it is
written, so that the disk is at work from the first block on. A block whose bytes are those of the
checkpoint before gets that one's file, under a second name.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    write_rows,
)
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
SYNCS = 3
"""How many of its files are fsynced at a time."""


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


class Saver:
    """The queue of one job's blocks on one server. ``root`` is where its checkpoints are."""

    def __init__(self, tasks: asyncio.TaskGroup, root: str) -> None:
        self._tasks = tasks
        self._root = root
        self._queue: list[Save] = []
        self._streams = 0
        self._written: list[tuple[Save, Path, SavedMeta]] = []
        self._syncs = 0

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
        room = Room()
        try:
            while self._queue:
                await self._write(self._queue.pop(0), room)
        finally:
            self._streams -= 1

    async def _write(self, save: Save, room: Room) -> None:
        if save.copied:  # given up meanwhile
            return
        directory = place_of(self._root) / save.draft
        try:
            meta, version, payload = await save.copy(room)
            if save.given_up:  # it may have changed while it was copied
                return
            work = (directory, save.block, meta, payload, self._path_of(save.earlier))
            entry = await asyncio.to_thread(write_block, *work)
        except FileNotFoundError:
            save.settle(None, self._not_shared(directory))
        except OSError as error:
            save.settle(None, _not_written(save.block, error))
        except ElasticError as error:
            save.settle(None, str(error))
        else:
            saved = SavedMeta(
                entry.name, entry.size, entry.xxh128, meta.round, version, meta.scalars
            )
            self._written.append((save, directory / entry.name, saved))
            if self._syncs < SYNCS:
                self._syncs += 1
                self._tasks.create_task(self._sync_all())

    async def _sync_all(self) -> None:
        try:
            while self._written:
                await self._sync(*self._written.pop(0))
        finally:
            self._syncs -= 1

    async def _sync(self, save: Save, path: Path, saved: SavedMeta) -> None:
        try:
            await asyncio.to_thread(STORAGE.sync_file, path)
        except OSError as error:
            save.settle(None, _not_written(save.block, error))
        else:
            save.settle(saved)

    def _path_of(self, file: EarlierFile | None) -> Earlier | None:
        if file is None:
            return None
        return Earlier(place_of(self._root) / file.checkpoint / file.name, file.xxh128)

    def _not_shared(self, directory: Path) -> str:
        """Why a draft, which the main worker made before it told of it, is not here."""
        return (
            f"{directory} is not on {socket.gethostname()}, and the main worker has made it:"
            f" {self._root} is to be the same directory on every machine, as on a network file"
            " system (field checkpoint_dir)"
        )


def _not_written(block: BlockId, error: OSError) -> str:
    return f"block {block} cannot be written: {error.strerror}"


def _is_of_a_checkpoint(file: EarlierFile) -> bool:
    return NAME.fullmatch(file.checkpoint) is not None and is_plain(file.name)


def write_block(
    directory: Path,
    block: BlockId,
    meta: StateMeta,
    payload: memoryview,
    earlier: Earlier | None = None,
) -> FileEntry:
    """Write a block's value and state, not durably. Raises OSError and CheckpointError."""
    rows: list[Row] = []
    offset = 0
    for row in meta.tensors:
        part = payload[offset : offset + row.nbytes]
        rows.append(Row(row.key, dtype_named(row.dtype), row.shape, part))
        offset += row.nbytes
    # Another server may write the block too, when the first dies or is deposed meanwhile.
    path = directory / f"block-{block:06d}-{secrets.token_hex(4)}.safetensors"
    return write_rows(path, rows, durable=False, earlier=earlier)
