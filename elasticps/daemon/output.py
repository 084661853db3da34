"""A child's output on its way: from its pipes, in lines, to the buffer and to the file.

The buffer gets each line at once. The file is written on a thread, so that a slow disk holds up
neither the event loop nor, beyond a bound, the child.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from elasticps.daemon.log_files import LogBuffer, LogFile, LogLine, Stream, format_time

MAX_LINE_BYTES = 64 << 10
READ_BYTES = 16 << 10  # bounds the work on the loop between two awaits
DISK_STALL_S = 1.0


class LineSplitter:
    """Bytes in, lines out. A line beyond ``max_bytes`` is split, but not within a character."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._partial = bytearray()

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that are complete now."""
        *ended, rest = chunk.split(b"\n")
        lines: list[str] = []
        for piece in ended:
            self._partial += piece
            self._split(lines)
            lines.append(_text(self._partial.removesuffix(b"\r")))
            self._partial.clear()
        self._partial += rest
        self._split(lines)
        return lines

    def end(self) -> list[str]:
        """The last line, if it had no newline."""
        last = [_text(self._partial)] if self._partial else []
        self._partial.clear()
        return last

    def _split(self, lines: list[str]) -> None:
        while len(self._partial) > self._max_bytes:
            cut = self._max_bytes
            while cut > self._max_bytes - 3 and self._partial[cut] & 0xC0 == 0x80:
                cut -= 1
            lines.append(_text(self._partial[:cut]))
            del self._partial[:cut]


class Output:
    """Takes one child's lines to its buffer and its file, for one life of the child."""

    def __init__(
        self, source: str, buffer: LogBuffer, file: LogFile, *, stall_s: float = DISK_STALL_S
    ) -> None:
        self._source = source
        self._buffer = buffer
        self._file = file
        self._stall_s = stall_s
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"log-{source}")
        self._stalled: Future[None] | None = None
        self._lost = 0

    async def read(self, fd: int, stream: Stream) -> None:
        """Take everything from a non-blocking pipe until its end."""
        splitter = LineSplitter()
        while True:
            await readable(fd)
            try:
                chunk = os.read(fd, READ_BYTES)
            except BlockingIOError:
                continue
            if not chunk:
                break
            await self.write(splitter.feed(chunk), stream)
        await self.write(splitter.end(), stream)

    async def write(self, texts: Sequence[str], stream: Stream) -> None:
        """Returns when the lines are in the file, or after ``stall_s``."""
        if not texts:
            return
        lines = self._buffer.extend(
            texts, time_unix=time.time(), source=self._source, stream=stream
        )
        if self._stalled is not None and not self._stalled.done():
            self._lost += len(lines)
            return
        lost, self._lost = self._lost, 0
        await self._on_disk(self._disk.submit(self._append, lines, lost))

    async def aclose(self) -> None:
        """Close the file and let the thread go; a thread that hangs on the disk is not awaited."""
        closing = self._disk.submit(self._finish, self._lost)
        self._disk.shutdown(wait=False)
        if self._stalled is None or self._stalled.done():
            await self._on_disk(closing)

    async def _on_disk(self, job: Future[None]) -> None:
        done, _ = await asyncio.wait({asyncio.wrap_future(job)}, timeout=self._stall_s)
        if done:
            job.result()
        else:
            self._stalled = job

    def _append(self, lines: list[LogLine], lost: int) -> None:
        if lost:
            self._file.drop(lost, f"the disk did not answer within {self._stall_s:g} s")
        self._file.append(
            [f"{format_time(line.time_unix)} {line.stream} {line.text}" for line in lines]
        )

    def _finish(self, lost: int) -> None:
        self._append([], lost)
        self._file.close()


async def readable(fd: int) -> None:
    """Wait until a read of the descriptor would not block."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _text(line: bytes | bytearray) -> str:
    return line.decode("utf-8", "replace")
