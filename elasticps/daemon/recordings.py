"""Recordings of what this node's children do for a job: asked for, and gathered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from elasticps.core.ids import JobKey
from elasticps.core.spans import ProcessSpans, Span
from elasticps.errors import UsageError
from elasticps.wire.control_messages import Control, RecordedSpans, RecordSpans

HAND_IN_S = 5.0
"""How long a child may take to say what it has: it may be at a long computation."""
SLACK_S = 30.0
"""How long a child records on, should nobody come to stop it."""
SERVER = "shard server"
FROM_SERVER = ""


class Recordings:
    """``tell_worker`` and ``tell_server`` send to children; one recording at a time of each."""

    def __init__(
        self,
        tell_worker: Callable[[str, Control], None],
        tell_server: Callable[[Control], bool],
    ) -> None:
        self._tell_worker = tell_worker
        self._tell_server = tell_server
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
        """Record ``steps`` of each of these workers, and of the server from now on.

        ``ranks`` are by uid. Returns after ``wait_s`` with what there is, where steps take longer.
        """
        for uid in ranks:
            self._check_free(job, uid)
        asked = RecordSpans(job, steps, wait_s + SLACK_S, most)
        self._tell_server(asked)

        async def one(uid: str, rank: int) -> ProcessSpans:
            async with self._gathering(job, uid) as recording:
                self._tell_worker(uid, asked)
                if not await recording.is_whole_within(wait_s):
                    self._tell_worker(uid, RecordSpans(job))
                    await recording.is_whole_within(HAND_IN_S)
                return recording.of(node, uid, rank)

        return list(await asyncio.gather(*(one(uid, rank) for uid, rank in ranks.items())))

    async def of_server(self, node: str, job: JobKey) -> ProcessSpans:
        """End the shard server's recording and fetch it."""
        async with self._gathering(job, FROM_SERVER) as recording:
            self._tell_server(RecordSpans(job))
            await recording.is_whole_within(HAND_IN_S)
            return recording.of(node, SERVER, None)

    def recorded(self, uid: str, part: RecordedSpans) -> None:
        recording = self._open.get((part.job, uid))
        if recording is not None:
            recording.take(part)

    def gone(self, uid: str) -> None:
        """No more comes of a child."""
        for (_, of), recording in self._open.items():
            if of == uid:
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
