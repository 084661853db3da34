"""Contestants take turns, so that what else the machine does slows all of them alike.

A contestant is a command; its processes live from ``Contestant.start`` to ``close``. One that
cannot be started or that breaks is left out, and the reason is kept to be printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.processes import cpu_s, signal_all, tree

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0
TURN_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 60.0
SETTLE_LOOK_S = 0.1


class Unavailable(Exception):
    """Why a contestant takes no part."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Who takes part: ``python -m MODULE --socket PATH OPTIONS``, with ``parts`` that report.

    ``spins``: it computes even while nobody asks it to, and is stopped between its turns.
    ``settles``: it makes the file PATH with the suffix .settled, before which no turn counts.
    """

    name: str
    module: str
    options: tuple[str, ...] = ()
    parts: int = 1
    spins: bool = False
    settles: bool = False


@dataclass(kw_only=True)
class Result:
    """Steps' seconds of each turn, the CPU seconds of all its processes, and the last word."""

    name: str
    turns: list[list[float]] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)
    unavailable: str = ""

    @property
    def seconds(self) -> list[float]:
        return [each for turn in self.turns for each in turn]

    @property
    def medians(self) -> list[float]:
        """Of each turn, to be compared with the same turn's of another."""
        return [statistics.median(turn) for turn in self.turns]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Between the quartiles of the turns' medians, as a part of their median."""
        medians = self.medians
        if len(medians) < 2:
            return 0.0
        low, middle, high = statistics.quantiles(medians, n=4)
        return (high - low) / middle

    def percentile_s(self, percent: int) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    def gb_per_s(self, nbytes: int) -> float:
        """Of a step that pushes and pulls ``nbytes``."""
        return 2 * nbytes / self.median_s / 1e9

    def cpu_s_per_gb(self, nbytes: int) -> float:
        return self.cpu_s / (2 * nbytes * len(self.seconds) / 1e9)


def ratio(one: Result, other: Result) -> float:
    """How many times as long ``one`` takes: the median of the turns' ratios."""
    pairs = zip(one.medians, other.medians, strict=True)
    return statistics.median(mine / its for mine, its in pairs)


class Contestant:
    """The running processes of one entry. Raises Unavailable."""

    def __init__(self, entry: Entry, directory: Path) -> None:
        self.entry = entry
        self.result = Result(name=entry.name)
        self._log = directory / f"{entry.name.replace(' ', '-').replace('/', '-')}.log"
        self._path = directory / f"{self._log.stem}.sock"
        self._parts: list[IO[str]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with socket.socket(socket.AF_UNIX) as listener, self._log.open("wb") as log:
            listener.bind(str(self._path))
            listener.listen()
            listener.settimeout(1.0)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", self.entry.module, "--socket", str(self._path)),
                    *self.entry.options,
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
            accepted = [self._accept(listener) for _ in range(self.entry.parts)]
        self._parts = [lines for _, lines in sorted(accepted, key=lambda pair: pair[0])]
        if self.entry.spins:
            signal_all(self.pids, signal.SIGSTOP)
        return self

    @property
    def pids(self) -> list[int]:
        assert self._process is not None
        return tree(self._process.pid)

    def turn(self, steps: int, *, counted: bool = True) -> list[float]:
        """Let it do so many steps; returns each one's seconds, of the part that waited least."""
        pids = self.pids
        if self.entry.spins:
            signal_all(pids, signal.SIGCONT)
        before, began = cpu_s(pids), time.monotonic()
        for lines in self._parts:
            lines.write(json.dumps({"steps": steps}) + "\n")
            lines.flush()
        heard = [self._hear(lines) for lines in self._parts]
        seconds = [
            min(times) for times in zip(*(each.pop("seconds") for each in heard), strict=True)
        ]
        if counted:
            self.result.turns.append(seconds)
            preparing_s = sum(each.pop("preparing_s", 0.0) for each in heard)
            self.result.cpu_s += cpu_s(pids) - before - preparing_s
            self.result.wall_s += time.monotonic() - began
        for each in heard:
            self.result.more.update(each)
        if self.entry.spins:
            signal_all(pids, signal.SIGSTOP)
        return seconds

    def settle(self) -> None:
        """Wait until it says that it is as it should be."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.entry.settles and not self._path.with_suffix(".settled").exists():
            if time.monotonic() > deadline:
                raise Unavailable(self._why(f"not settled in {START_TIMEOUT_S:g} s"))
            time.sleep(SETTLE_LOOK_S)

    def finish(self) -> Result:
        """Its last word, on what it has computed. Raises Unavailable where any of it was wrong."""
        if self.entry.spins:
            signal_all(self.pids, signal.SIGCONT)
        for lines in self._parts:
            lines.write(json.dumps({"steps": 0}) + "\n")
            lines.flush()
        for lines in self._parts:
            self.result.more.update(self._hear(lines))
        notes = self._path.with_suffix(".json")
        if notes.exists():
            self.result.more.update(json.loads(notes.read_text()))
        if self.result.more.get("wrong"):
            raise Unavailable(f"{self.result.more['wrong']} elements are wrong")
        return self.result

    def close(self) -> None:
        """Idempotent."""
        for lines in self._parts:
            with contextlib.suppress(OSError):
                lines.close()
        process, self._process = self._process, None
        if process is None:
            return
        pids = tree(process.pid)
        signal_all(pids, signal.SIGCONT)
        try:
            process.wait(CLOSE_TIMEOUT_S if self._parts else 0.1)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
        signal_all(pids, signal.SIGKILL if process.poll() is None else 0)
        process.wait()

    def _accept(self, listener: socket.socket) -> tuple[int, IO[str]]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                conn, _ = listener.accept()
                break
            except TimeoutError:
                assert self._process is not None
                if self._process.poll() is not None:
                    raise Unavailable(self._why(f"ended with {self._process.poll()}")) from None
                if time.monotonic() > deadline:
                    raise Unavailable(self._why(f"not ready in {START_TIMEOUT_S:g} s")) from None
        conn.settimeout(TURN_TIMEOUT_S)
        lines = conn.makefile("rw", encoding="utf-8")
        conn.close()  # the file has it
        return int(json.loads(lines.readline())["part"]), lines

    def _hear(self, lines: IO[str]) -> dict[str, Any]:
        try:
            line = lines.readline()
        except TimeoutError:
            raise Unavailable(self._why(f"silent for {TURN_TIMEOUT_S:g} s")) from None
        if not line:
            raise Unavailable(self._why("ended in its turn"))
        return dict(json.loads(line))

    def _why(self, what: str) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"{what}: {lines[-1][-200:]}" if lines else what


@dataclass(frozen=True, kw_only=True)
class Pace:
    """``rounds`` in which each has a turn of ``steps``, after one turn that is not counted."""

    rounds: int
    steps: int


def compete(entries: Sequence[Entry], pace: Pace) -> dict[str, Result]:
    """Each entry's result, by name; that of one that broke says why and has no times."""
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        running = [Contestant(entry, Path(directory)) for entry in entries]
        try:
            for contestant in list(running):
                with _left_out(contestant, running, results):
                    contestant.start()
                    contestant.turn(pace.steps, counted=False)
                    contestant.settle()
            for _ in range(pace.rounds):
                for contestant in list(running):
                    with _left_out(contestant, running, results):
                        contestant.turn(pace.steps)
            for contestant in list(running):
                with _left_out(contestant, running, results):
                    results[contestant.entry.name] = contestant.finish()
        finally:
            for contestant in running:
                contestant.close()
    return {entry.name: results[entry.name] for entry in entries}


@contextlib.contextmanager
def _left_out(
    contestant: Contestant, running: list[Contestant], results: dict[str, Result]
) -> Iterator[None]:
    """Where it proves unavailable it is out, and the others go on."""
    try:
        yield
    except (Unavailable, OSError) as error:
        name = contestant.entry.name
        results[name] = Result(name=name, unavailable=str(error) or repr(error))
        print(f"  {name} takes no part: {error}", flush=True)
        running.remove(contestant)
        contestant.close()


def available(results: Mapping[str, Result]) -> dict[str, Result]:
    return {name: each for name, each in results.items() if not each.unavailable}
