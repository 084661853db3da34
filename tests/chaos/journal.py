"""What each life of a worker writes down: what it pushed, what it was told, what it saw wrong.

One file a life, one JSON object a line, handed to the kernel line by line: a kill loses nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK = 64
"""How many places a life takes for itself at a time."""


@dataclass(slots=True)
class Push:
    """One step's push. ``count`` is None while its outcome is unknown, 0 where it was left out.

    ``round`` is the one it was tried for, later the one that was told of; ``mask`` are the lives
    that this round was seen to count.
    """

    life: int
    place: int
    amount: int
    round: int
    tried_at: float
    count: int | None = None
    mask: int | None = None
    told_at: float = 0.0


@dataclass(slots=True)
class Life:
    """One life as its journal tells it."""

    number: int
    uid: str = ""
    worker: int = 0
    pushes: dict[int, Push] = field(default_factory=dict)
    wrongs: list[tuple[str, str]] = field(default_factory=list)

    @property
    def bit(self) -> int:
        return bit_of(self.number)


def bit_of(life: int) -> int:
    """Its own among the lives of its time; a sum over all rounds stays exact in float64."""
    return 1 << (life % 32)


class Writer:
    """The journal of this process's life. Times are CLOCK_MONOTONIC, the same in all processes."""

    def __init__(self, directory: Path, uid: str, worker: int) -> None:
        self._directory = directory
        self.life = _claimed(directory / "lives")
        self._places: Iterator[int] = iter(())
        flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY
        self._file = os.open(directory / f"journal-{self.life}", flags, 0o644)
        self._write(life=self.life, uid=uid, worker=worker)

    def place(self) -> int:
        """A place that no other push has or will have."""
        found = next(self._places, None)
        if found is None:
            first = CHUNK * _claimed(self._directory / "chunks")
            self._places = iter(range(first, first + CHUNK))
            found = next(self._places)
        return found

    def tries(self, place: int, amount: int, round_: int) -> None:
        self._write(tries=place, amount=amount, round=round_, at=time.monotonic())

    def told(self, place: int, round_: int, count: int, mask: int | None) -> None:
        self._write(told=place, round=round_, count=count, mask=mask, at=time.monotonic())

    def wrong(self, kind: str, text: str) -> None:
        self._write(wrong=kind, text=text)

    def _write(self, **row: Any) -> None:
        os.write(self._file, json.dumps(row).encode() + b"\n")


class Journals:
    """All lives of a job, read as they grow."""

    def __init__(self, directory: Path) -> None:
        self.lives: dict[int, Life] = {}
        self.told: list[Push] = []
        self._directory = directory
        self._offsets: dict[Path, int] = {}

    def read(self) -> None:
        """Take in what was written since."""
        for path in sorted(self._directory.glob("journal-*")):
            with path.open("rb") as journal:
                journal.seek(self._offsets.get(path, 0))
                data = journal.read()
            whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            number = int(path.name.partition("-")[2])
            life = self.lives.setdefault(number, Life(number))
            for line in whole.splitlines():
                self._take(life, json.loads(line))

    def _take(self, life: Life, row: dict[str, Any]) -> None:
        if "uid" in row:
            life.uid, life.worker = row["uid"], row["worker"]
        elif "tries" in row:
            place = row["tries"]
            life.pushes[place] = Push(life.number, place, row["amount"], row["round"], row["at"])
        elif "told" in row:
            push = life.pushes[row["told"]]
            push.count, push.mask, push.told_at = row["count"], row["mask"], row["at"]
            push.round = row["round"]
            if push.count:
                self.told.append(push)
        else:
            life.wrongs.append((row["wrong"], row["text"]))

    @property
    def acknowledged(self) -> int:
        return len(self.told)

    def first_told(self, since: float) -> Push | None:
        """The first push that began after ``since`` and was acknowledged."""
        later = [push for push in self.told if push.tried_at >= since]
        return min(later, key=lambda push: push.told_at, default=None)


def _claimed(directory: Path) -> int:
    """The lowest number that no process has taken; taken for ever."""
    directory.mkdir(exist_ok=True)
    number = len(os.listdir(directory))  # noqa: PTH208 - names alone are wanted, and quickly
    while True:
        try:
            os.close(os.open(directory / str(number), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            number += 1
        else:
            return number
