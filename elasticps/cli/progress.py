"""One line on stderr that says how far something is."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TextIO

PLAIN_PERIOD_S = 2.0
_ERASE = "\r\x1b[2K"


class Progress:
    """Kept in place on a terminal; elsewhere a changed line is written every two seconds at most.

    Whatever else goes to the terminal meanwhile is written within ``above``.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._text = ""
        self._shown = ""
        self._shown_at = -PLAIN_PERIOD_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live and self._text:
            self._put(_ERASE)
        self._text = ""

    def show(self, text: str) -> None:
        """Say how far it is now."""
        self._text = text
        if self._live:
            self._draw()
        elif text != self._shown and time.monotonic() - self._shown_at >= PLAIN_PERIOD_S:
            self._shown, self._shown_at = text, time.monotonic()
            self._put(f"{text}\n")

    @contextlib.contextmanager
    def above(self) -> Iterator[None]:
        """Take the line away while something else is written."""
        if not (self._live and self._text):
            yield
            return
        self._put(_ERASE)
        yield
        self._draw()

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._put(_ERASE + self._text[:width])

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
