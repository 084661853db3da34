"""Pushes of a round that leave before its step, as backward makes the gradients."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from elasticps.core.commands import Turn
from elasticps.core.ids import BlockId
from elasticps.worker.block_calls import CALLS_IN_FLIGHT
from elasticps.worker.parameters import BlockMemory

EARLY_IN_FLIGHT = CALLS_IN_FLIGHT // 2
"""A push is held until all workers have pushed the block, and they may make their gradients in
different orders: the rest is for pushes in the blocks' order, so that the lowest block that is not
answered is always under way at everyone, once all have come to their step."""


class EarlyPushes:
    """On the data loop. ``push`` sends one block of the round that ``turn`` is for."""

    def __init__(self, push: Callable[[BlockMemory, Turn], Coroutine[Any, Any, bool]]) -> None:
        self._push = push
        self._ready: deque[tuple[BlockMemory, Turn]] = deque()
        self._sent: dict[BlockId, tuple[asyncio.Task[bool], Turn]] = {}
        self._under_way = 0

    def offer(self, blocks: Iterable[BlockMemory], turn: Turn) -> None:
        """The gradients of these blocks are there: send them as soon as there is room."""
        self._ready.extend((memory, turn) for memory in blocks)
        self._send()

    def settle(self) -> None:
        """The step has come: what has not left goes with it."""
        self._ready.clear()

    def has_left(self, block: BlockId) -> bool:
        """Has a push of the block left before its step?"""
        return block in self._sent

    async def pushed(self, memory: BlockMemory, turn: Turn) -> bool:
        """Push the block for ``turn``, or wait until the push that has left is answered."""
        sent, of = self._sent.pop(memory.block.id, (None, None))
        if sent is not None and of == turn:
            return await sent
        if sent is not None:
            sent.cancel()
        return await self._push(memory, turn)

    def _send(self) -> None:
        while self._ready and self._under_way < EARLY_IN_FLIGHT:
            memory, turn = self._ready.popleft()
            self._under_way += 1
            task = asyncio.create_task(self._push(memory, turn))
            task.add_done_callback(self._answered)
            self._sent[memory.block.id] = task, turn

    def _answered(self, task: asyncio.Task[bool]) -> None:
        self._under_way -= 1
        if not task.cancelled():
            task.exception()  # who waits for it at the step is told
        self._send()
