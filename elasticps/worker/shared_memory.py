"""A worker's parameters and gradients in regions that the shard servers of its machine map.

Parameters become views of one region, gradients of another. A request then names a *place* instead
of carrying a payload. What a server may yet do with a place that it was told of, and has not
answered about, is the whole difficulty: see ``settle`` and decision 18.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from elasticps.core.blocks import Block
from elasticps.core.ids import BlockId, JobKey, WorkerId
from elasticps.errors import PeerUnavailable, WireError
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import Place, RegionsOffer, RegionsShown, decode
from elasticps.wire.region_socket import show
from elasticps.wire.regions import ALIGNMENT, Region
from elasticps.worker.parameters import BlockMemory

log = logging.getLogger(__name__)

SHARE_TIMEOUT_S = 5.0
HOOKED_BYTES = 64 << 10
"""Smaller gradients are copied when they are pushed: a hook costs as much as they do."""
OWN_REFERENCES = 2
"""To a storage that only its parameter has: the tensor's and the one by which it is counted."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One parameter: ``offset`` is its place in both regions, ``gradient`` its part of the one.

    ``copied``: blocks of the gradient that were copied there for the push under way.
    """

    parameter: torch.Tensor
    offset: int
    gradient: torch.Tensor
    copied: set[Block] = field(default_factory=set)


class SharedMemory:
    """``why_not`` says why nothing is shared; empty where all is that can be.

    ``gradients``: whether gradients are pushed as they are, uncoded.
    """

    def __init__(self, job: JobKey, worker: WorkerId, *, gradients: bool) -> None:
        self.why_not = "no shard server of this machine was there when the worker joined"
        self._header = Header(Kind.SHARE, job=job, worker=worker)
        self._has_gradients = gradients
        self._is_off = False
        self._gradients: Region | None = None
        self._values: Region | None = None
        self._numbers = (0, 0)
        self._rows: dict[int, _Row] = {}
        self._copied: list[_Row] = []
        self._hooks: dict[int, torch.utils.hooks.RemovableHandle] = {}
        self._showing: weakref.WeakKeyDictionary[Connection, asyncio.Task[bool]]
        self._showing = weakref.WeakKeyDictionary()
        self._lent: set[BlockId] = set()
        self._zombies: set[tuple[BlockId, Connection]] = set()
        self._rescued: dict[BlockId, tuple[Place, memoryview | None]] = {}

    @property
    def is_on(self) -> bool:
        return self._values is not None and not self._is_off

    def turn_off(self, why: str) -> None:
        """Name no more places. Nothing may be under way, nor a gradient have been pushed."""
        self._is_off = True
        self.why_not = why

    @property
    def described(self) -> str:
        """What goes over it, or why nothing does, for a user to read."""
        if self.why_not:
            return f"Unix socket ({self.why_not})"
        coded = "" if self._has_gradients else " (values; a codec codes the gradients)"
        return f"shared memory{coded}"

    # -- taking over the memory -----------------------------------------------------------------

    def adopt(self, memory: Sequence[BlockMemory]) -> None:
        """Move the parameters that are here into a region. Nobody may use them meanwhile."""
        held = {id(each.parameter): each.parameter for each in memory if each.is_held}
        movable = [item for item in held.values() if _is_movable(item)]
        if not movable:
            self.why_not = "the parameters' memory is shared with other tensors, or not held here"
            return
        offsets, nbytes = _laid_out(movable)
        try:
            self._values = Region.make("elasticps-values", nbytes, others_write=True)
            if self._has_gradients:
                self._gradients = Region.make("elasticps-gradients", nbytes, others_write=False)
        except OSError as error:
            self._values = None
            self.why_not = f"no memfd: {error.strerror}"
            return
        self.why_not = ""
        self._numbers = (next(_numbers) if self._has_gradients else 0, next(_numbers))
        for parameter, offset in zip(movable, offsets, strict=True):
            self._take_over(parameter, offset)

    def _take_over(self, parameter: torch.Tensor, offset: int) -> None:
        assert self._values is not None
        value = _view(self._values, offset, parameter)
        value.copy_(parameter.detach())
        parameter.data = value
        if self._gradients is None:
            return
        gradient = _view(self._gradients, offset, parameter)
        self._rows[id(parameter)] = _Row(parameter, offset, gradient)

    # -- places ---------------------------------------------------------------------------------

    @property
    def takes_gradients(self) -> bool:
        return self._gradients is not None and not self._is_off

    def has_place(self, memory: BlockMemory) -> bool:
        """Has the gradient of the block's parameter a place of its own?"""
        return id(memory.parameter) in self._rows

    def gradient_place(
        self, memory: BlockMemory, update: torch.Tensor, *, is_gradient: bool, kept: bool
    ) -> Place | None:
        """Where the block's part of the gradient lies, copied there if need be; None: nowhere.

        ``update``: that part. ``is_gradient``: it is of the parameter's own ``grad``.
        """
        region, block = self._gradients, memory.block
        if region is None or self._is_off:
            return None
        offset = region.mapping.offset_of(update.data_ptr(), block.nbytes)
        if offset is None:
            row = self._rows.get(id(memory.parameter))
            if row is None or not is_gradient or update.dtype != row.gradient.dtype:
                return None
            row.gradient.view(-1)[block.start : block.stop].copy_(update)
            if not row.copied:
                self._copied.append(row)
            row.copied.add(block)
            offset = row.offset + block.start * row.gradient.element_size()
        return Place(self._numbers[0], offset, block.nbytes, kept)

    def hold_gradients(self) -> None:
        """All blocks have been pushed: gradients that were copied whole are not kept twice, and the
        next ones are put there as backward makes them."""
        for row in self._copied:
            if sum(block.numel for block in row.copied) == row.parameter.numel():
                _hold(row.gradient, row.parameter)
                self._hook(row)
            row.copied.clear()
        self._copied.clear()

    def _hook(self, row: _Row) -> None:
        parameter = row.parameter
        is_large = parameter.nbytes >= HOOKED_BYTES
        if is_large and id(parameter) not in self._hooks and parameter.requires_grad:
            register = parameter.register_post_accumulate_grad_hook
            take_in = functools.partial(_take_in, row.gradient)
            self._hooks[id(parameter)] = register(take_in)  # type: ignore[no-untyped-call]

    def value_place(self, block: Block, target: torch.Tensor) -> Place | None:
        """Where the value lies in ``target``, which is like the parameter; None: nowhere."""
        region = self._values
        if region is None or self._is_off:
            return None
        address = target.data_ptr() + block.start * target.element_size()
        offset = region.mapping.offset_of(address, block.nbytes)
        return None if offset is None else Place(self._numbers[1], offset, block.nbytes)

    # -- servers --------------------------------------------------------------------------------

    async def ready(self, connection: Connection, block: BlockId) -> bool:
        """Has the server there mapped the regions as they are now, and may it be told a place?"""
        if connection.where.transport != "unix" or block in self._rescued:
            return False
        showing = self._showing.get(connection)
        if showing is None:
            showing = asyncio.ensure_future(self._show(connection))
            self._showing[connection] = showing
        if showing.done():
            return not showing.cancelled() and showing.result()
        return await asyncio.shield(showing)

    async def _show(self, connection: Connection) -> bool:
        try:
            reply = await connection.request(self._header, timeout_s=SHARE_TIMEOUT_S)
            if reply.header.status is not Status.OK:
                self._showing.pop(connection, None)  # it does not know the job yet: ask again
                return False
            if not reply.meta:
                raise PeerUnavailable("it takes no regions", where=str(connection.where))
            offer = decode(reply.meta, RegionsOffer)
            regions = [each for each in (self._gradients, self._values) if each is not None]
            shown = RegionsShown(offer.token, *self._numbers)
            # Of their own: these regions may get other files before the thread comes to them.
            descriptors = [os.dup(region.descriptor) for region in regions]
            await asyncio.to_thread(_show, offer.path, shown, descriptors)
        except (PeerUnavailable, WireError) as error:
            log.warning("no shared memory with %s: %s", connection.where, error)
            self.why_not = str(error)
            return False
        self.why_not = ""
        return True

    # -- what servers may still do --------------------------------------------------------------

    def lend(self, block: BlockId) -> None:
        """A server is told where the block's gradient lies."""
        self._lent.add(block)

    def returned(self, block: BlockId) -> None:
        """No server that lives reads the block's gradient any more, or counts what it read."""
        self._lent.discard(block)

    def answered(self, block: BlockId, connection: Connection) -> None:
        """What the server was told of the block before is over too: it takes one after the other.

        A push that it holds yet has the same bytes, at the same place, as the one it answers.
        """
        self._zombies.discard((block, connection))

    def abandoned(self, place: Place, block: BlockId, connection: Connection) -> None:
        """A server was told of ``place``, and will not be heard: it may come to it at any time."""
        if place.region == self._numbers[1]:
            self._rescued[block] = place, None
        else:
            self._zombies.add((block, connection))

    def rescue(self, block: BlockId, value: memoryview | None) -> None:
        """The value of a block whose place a server may still write to, read elsewhere."""
        place, _ = self._rescued[block]
        self._rescued[block] = place, value

    def is_abandoned(self, block: BlockId) -> bool:
        """May a server still write the block's value to where it lies?"""
        return block in self._rescued

    def settle(self) -> None:
        """All requests have been answered or abandoned, and the script goes on: what a server may
        still read or write gets pages that nobody here looks at any more.

        Raises OSError where there is no memory for others.
        """
        dirty_values = bool(self._rescued) and self._values is not None
        dirty_gradients = bool(self._zombies or self._lent) and self._gradients is not None
        if not dirty_values and not dirty_gradients:
            return
        log.info("shared memory: fresh pages, for a server that did not answer")
        numbers = list(self._numbers)
        if dirty_gradients and self._gradients is not None:
            self._gradients.renew("elasticps-gradients", others_write=False)
            numbers[0] = next(_numbers)
        if dirty_values and self._values is not None:
            self._values.renew("elasticps-values", others_write=True)
            numbers[1] = next(_numbers)
            for place, value in self._rescued.values():
                if value is not None:
                    piece = self._values.mapping.tensor[place.offset : place.offset + place.nbytes]
                    piece.copy_(torch.frombuffer(value, dtype=torch.uint8))
        self._numbers = (numbers[0], numbers[1])
        self._showing.clear()
        self._lent.clear()
        self._rescued.clear()
        self._zombies.clear()

    def close(self) -> None:
        """Let go of the files; the parameters stay as they are, in memory of this process alone."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        for region in (self._gradients, self._values):
            if region is not None:
                region.close()


def _show(path: str, shown: RegionsShown, descriptors: Sequence[int]) -> None:
    try:
        show(path, shown, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _is_movable(parameter: torch.Tensor) -> bool:
    """Is the parameter all of its storage, and is that nobody else's?"""
    storage = parameter.untyped_storage()
    if storage.nbytes() != parameter.nbytes or not parameter.nbytes:
        return False
    count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)  # noqa: SLF001
    return count is not None and count(storage._cdata) <= OWN_REFERENCES  # noqa: SLF001


def _laid_out(parameters: Sequence[torch.Tensor]) -> tuple[list[int], int]:
    """Each parameter's offset, and the size of all."""
    offsets, end = [], 0
    for parameter in parameters:
        offsets.append(end)
        end += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _view(region: Region, offset: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor like another in the region, with a storage of its own as that has."""
    whole = region.mapping.tensor
    piece = torch.frombuffer(
        memoryview(whole.numpy())[offset : offset + like.nbytes],  # type: ignore[arg-type]
        dtype=like.dtype,
    )
    return piece.view(like.shape)


def _take_in(place: torch.Tensor, parameter: torch.Tensor) -> None:
    """Move a gradient that backward has just made to where it is pushed from."""
    gradient = parameter.grad
    if gradient is None or gradient is place or gradient.is_sparse:
        return
    if gradient.data_ptr() != place.data_ptr():
        place.copy_(gradient)
        _hold(place, parameter)


def _hold(place: torch.Tensor, parameter: torch.Tensor) -> None:
    gradient = parameter.grad
    if gradient is not None and not gradient.requires_grad and gradient.dtype == place.dtype:
        parameter.grad = place
