"""A contestant's end: it does so many steps when it is its turn, and says how long each took.

Lines of JSON over a Unix socket; ``benchmarks.contest`` is the other end.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self


class Turns:
    """``for steps in turns: ... turns.report(seconds)``; ends when the contest is over.

    ``finished`` says, after the loop, what the contestant found wrong in what it computed.
    """

    def __init__(self, path: Path | str, part: int = 0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._say({"part": part})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def __iter__(self) -> Iterator[int]:
        """How many steps to do, once for each turn."""
        for line in self._lines:
            steps = int(json.loads(line)["steps"])
            if not steps:
                return
            yield steps

    def report(self, seconds: list[float], **more: Any) -> None:
        """What the turn's steps took, each."""
        self._say({"seconds": seconds, **more})

    def finished(self, **verdict: Any) -> None:
        """The last word: ``wrong`` elements among ``checked``, say."""
        self._say(verdict)

    def _say(self, message: dict[str, Any]) -> None:
        self._lines.write(json.dumps(message) + "\n")
        self._lines.flush()
