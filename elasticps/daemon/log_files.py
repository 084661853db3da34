"""A child's output at rest: the rotated file on disk, and the recent lines in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

logger = logging.getLogger(__name__)

Stream = Literal["stdout", "stderr", "daemon"]


class LogLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line of output. ``sequence`` counts from 1 within one LogBuffer; no newline in ``text``.

    The stream ``daemon`` carries what the daemon itself says about the process.
    """

    sequence: int
    time_unix: float
    source: str
    stream: Stream
    text: str


class LinesMissed(msgspec.Struct, frozen=True, gc=False):
    """``count`` lines left the buffer before the reader came for them; the file has them."""

    count: int


class LogBuffer:
    """The last lines in memory, for readers that may lag. Belongs to one event loop.

    Holds at most ``max_lines`` lines and about ``max_bytes`` of text, but always the last line.
    """

    def __init__(self, max_lines: int = 2000, max_bytes: int = 4 << 20) -> None:
        self._lines: deque[LogLine] = deque()
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._bytes = 0
        self._last = 0
        self._closed = False
        self._grew = asyncio.Event()

    @property
    def last(self) -> int:
        """The sequence number of the newest line; 0 when there was none."""
        return self._last

    def extend(
        self, texts: Iterable[str], *, time_unix: float, source: str, stream: Stream
    ) -> list[LogLine]:
        """Number the lines, keep them, wake the readers; returns the numbered lines."""
        lines = [
            LogLine(sequence=number, time_unix=time_unix, source=source, stream=stream, text=text)
            for number, text in enumerate(texts, self._last + 1)
        ]
        self._last += len(lines)
        self._lines.extend(lines)
        self._bytes += sum(len(line.text) for line in lines)
        while len(self._lines) > 1 and (
            len(self._lines) > self._max_lines or self._bytes > self._max_bytes
        ):
            self._bytes -= len(self._lines.popleft().text)
        self._wake()
        return lines

    def since(self, after: int = 0) -> list[LogLine | LinesMissed]:
        """Every line after the number ``after``, led by LinesMissed if some are gone.

        A number that was never given here (the daemon restarted) counts as 0.
        """
        if after > self._last:
            after = 0
        news: list[LogLine | LinesMissed] = []
        for line in reversed(self._lines):
            if line.sequence <= after:
                break
            news.append(line)
        missed = self._last - after - len(news)
        if missed:
            news.append(LinesMissed(missed))
        news.reverse()
        return news

    async def follow(self, after: int = 0) -> AsyncIterator[LogLine | LinesMissed]:
        """Yield as ``since`` does, then what comes, until the buffer is closed."""
        while True:
            grew = self._grew
            news = self.since(after)
            after = self._last
            for item in news:
                yield item
            if self._closed and self._last == after:
                return
            await grew.wait()

    def close(self) -> None:
        """No line comes any more: every follower ends after the last one."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._grew.set()
        self._grew = asyncio.Event()


class LogFile:
    """Appends lines to ``path``; full files move on to ``path.1`` .. ``path.<keep>``. Mode 0640.

    Never raises an OSError: lines that can't be written (no space, no directory) are dropped and
    counted, and a notice in the file says how many once writing works again. Calls block on the
    disk; threads may share it. The file is opened at the first append.
    """

    def __init__(self, path: Path, *, max_bytes: int = 16 << 20, keep: int = 3) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size = 0
        self._dropped = 0
        self._unreported = 0
        self._cause = ""

    @property
    def dropped(self) -> int:
        """How many lines were lost in all."""
        return self._dropped

    def append(self, lines: Sequence[str]) -> None:
        """Write the lines; a line has no newline. Only a line beyond the bound breaks the bound."""
        encoded = [line.encode("utf-8", "replace") + b"\n" for line in lines]
        start = 0
        with self._lock:
            try:
                while start < len(encoded):
                    notice = self._notice()
                    end = self._fit(encoded, start, len(notice))
                    self._write(notice + b"".join(encoded[start:end]))
                    self._unreported = 0
                    start = end
            except OSError as error:
                self._drop(len(encoded) - start, error.strerror or str(error))

    def drop(self, count: int, cause: str) -> None:
        """Count lines that the caller had to lose; the next append that works tells."""
        with self._lock:
            self._drop(count, cause)

    def close(self) -> None:
        """Idempotent; a later append opens the file again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _drop(self, count: int, cause: str) -> None:
        if not self._unreported:
            logger.warning("%s: lines are being dropped: %s", self.path, cause)
        self._dropped += count
        self._unreported += count
        self._cause = cause

    def _notice(self) -> bytes:
        if not self._unreported:
            return b""
        now = format_time(time.time())
        return f"{now} daemon {self._unreported} lines were dropped: {self._cause}\n".encode()

    def _fit(self, encoded: list[bytes], start: int, reserved: int) -> int:
        """Rotate if the line at ``start`` doesn't fit; the end of the lines that fit now."""
        self._open()
        if self._size and self._size + reserved + len(encoded[start]) > self._max_bytes:
            self._rotate()
        room = self._max_bytes - self._size - reserved - len(encoded[start])
        end = start + 1
        while end < len(encoded) and len(encoded[end]) <= room:
            room -= len(encoded[end])
            end += 1
        return end

    def _open(self) -> int:
        if self._fd is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o640)
            os.fchmod(self._fd, 0o640)
            self._size = os.fstat(self._fd).st_size
        return self._fd

    def _write(self, content: bytes) -> None:
        fd = self._open()
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.ftruncate(fd, self._size)
            self._close()
            raise
        self._size += len(content)

    def _rotate(self) -> None:
        self._close()
        names = [self.path, *(Path(f"{self.path}.{i}") for i in range(1, self._keep + 1))]
        names[-1].unlink(missing_ok=True)
        for older, newer in pairwise(reversed(names)):
            with contextlib.suppress(FileNotFoundError):  # a gap in the row is no harm
                newer.rename(older)
        self._open()


def format_time(time_unix: float) -> str:
    """UTC with milliseconds: 2025-01-31T12:00:00.123Z."""
    text = datetime.fromtimestamp(time_unix, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"
