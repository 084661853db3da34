"""Recordings of what this node's children do for a job: asked for, and gathered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from elasticps.core.ids import JobKey
from elasticps.core.spans import ProcessSpans, Span
from elasticps.errors import UsageError
from elasticps.wire.control_messages import Control, RecordedSpans, RecordSpans

HAND_IN_S = 5.0
"""How long a child may take to say what it has: it may be at a long computation."""
SLACK_S = 30.0
"""How long a child records on, should nobody come to stop it."""


class Recordings:
    """Of children, by a worker's uid or a shard server's name: one at a time of each.

    ``tell_worker`` and ``tell_servers`` send to them; the latter says to which.
    """

    def __init__(
        self,
        tell_worker: Callable[[str, Control], None],
        tell_servers: Callable[[Control], Sequence[str]],
    ) -> None:
        self._tell_worker = tell_worker
        self._tell_servers = tell_servers
        self._open: dict[tuple[JobKey, str], _Recording] = {}

    @asynccontextmanager
    async def _gathering(self, job: JobKey, uid: str) -> AsyncIterator[_Recording]:
        """Raises UsageError where it is gathered already."""
        self._check_free(job, uid)
        recording = self._open[job, uid] = _Recording()
        try:
            yield recording
        finally:
            del self._open[job, uid]

    def _check_free(self, job: JobKey, uid: str) -> None:
        if (job, uid) in self._open:
            raise UsageError(
                "the job is being profiled", field="job", limit="one profile at a time"
            )

    async def of_workers(
        self, node: str, job: JobKey, ranks: Mapping[str, int], steps: int, wait_s: float, most: int
    ) -> list[ProcessSpans]:
        """Record ``steps`` of each of these workers, and of the servers from now on.

        ``ranks`` are by uid. Returns after ``wait_s`` with what there is, where steps take longer.
        """
        for uid in ranks:
            self._check_free(job, uid)
        asked = RecordSpans(job, steps, wait_s + SLACK_S, most)
        self._tell_servers(asked)

        async def one(uid: str, rank: int) -> ProcessSpans:
            async with self._gathering(job, uid) as recording:
                self._tell_worker(uid, asked)
                if not await recording.is_whole_within(wait_s):
                    self._tell_worker(uid, RecordSpans(job))
                    await recording.is_whole_within(HAND_IN_S)
                return recording.of(node, uid, rank)

        return list(await asyncio.gather(*(one(uid, rank) for uid, rank in ranks.items())))

    async def of_servers(self, node: str, job: JobKey) -> list[ProcessSpans]:
        """End the shard servers' recordings and fetch them."""

        async def one(child: str, recording: _Recording) -> ProcessSpans:
            await recording.is_whole_within(HAND_IN_S)
            return recording.of(node, child.replace("-", " "), None)

        async with AsyncExitStack() as stack:
            found = {
                child: await stack.enter_async_context(self._gathering(job, child))
                for child in self._tell_servers(RecordSpans(job))
            }
            return list(await asyncio.gather(*(one(*each) for each in found.items())))

    def recorded(self, child: str, part: RecordedSpans) -> None:
        recording = self._open.get((part.job, child))
        if recording is not None:
            recording.take(part)

    def gone(self, child: str) -> None:
        """No more comes of it."""
        for (_, of), recording in self._open.items():
            if of == child:
                recording.whole.set()


class _Recording:
    """What one child has said of its recording so far."""

    def __init__(self) -> None:
        self.whole = asyncio.Event()
        self._spans: list[Span] = []
        self._left_out = 0

    def take(self, part: RecordedSpans) -> None:
        if not self.whole.is_set():
            self._spans += part.spans
            self._left_out = part.left_out
            if part.last:
                self.whole.set()

    async def is_whole_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.whole.wait()
        except TimeoutError:
            return False
        return True

    def of(self, node: str, name: str, rank: int | None) -> ProcessSpans:
        spans = tuple(self._spans)
        return ProcessSpans(node=node, name=name, rank=rank, spans=spans, left_out=self._left_out)
