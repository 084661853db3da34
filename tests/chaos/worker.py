"""The chaos job's worker: worker.py DIRECTORY CONSISTENCY. It pushes, reads, checks and tells.

It goes on until DIRECTORY/stop exists; then the last one that is left writes DIRECTORY/final.npz.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

import elasticps
from elasticps.core.replica import Commit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.chaos.journal import Writer, bit_of
from tests.chaos.model import PLACES, SCALE, Tally

PACE_S = 0.03
CLOSE = 1e-3


class Reader:
    """What this worker reads, held against what it read before and what it was told."""

    def __init__(self, journal: Writer, model: Tally, consistency: str, round_: int) -> None:
        self._journal = journal
        self._model = model
        self._in_rounds = consistency in ("sync", "dropping")
        self._in_step = consistency == "sync"
        self._before = model.values()
        self._round = round_

    def check(self, commit: Commit, place: int, count: int) -> int | None:
        """Look at the model after a step whose push was counted among ``count``, 0 if left out.

        Returns the lives that the round counted, where that can be seen.
        """
        before, now = self._before, self._model.values()
        next_in_line = commit.round == self._round + 1
        self._versions(before, now, commit.round)
        self._before, self._round = now, commit.round
        share = SCALE / count if count else 0.0
        found = float(now["places"][place])
        if abs(found - share) > CLOSE:
            self._journal.wrong("version", f"my push at {place} of {count} reads as {found}")
        if not self._in_rounds:
            return None
        if bool((now["credit"] + now["debit"]).abs().max() > CLOSE):
            self._journal.wrong("bank", f"round {commit.round}: credit and debit differ")
        if not next_in_line:
            return None
        return self._mask(commit, now["bits"] - before["bits"])

    def _versions(
        self, before: dict[str, torch.Tensor], now: dict[str, torch.Tensor], round_: int
    ) -> None:
        for name in ("places", "bits", "credit"):
            if bool((now[name] < before[name]).any()):
                self._journal.wrong("version", f"{name} went back after round {round_}")
        if round_ <= self._round or (self._in_step and round_ != self._round + 1):
            self._journal.wrong("version", f"round {round_} after round {self._round}")

    def _mask(self, commit: Commit, moved: torch.Tensor) -> int | None:
        """The bits by which all elements moved; None where they did not move as one.

        They need not where rounds go on without the slowest: the others may have ended the next
        one between two of its reads.
        """
        count = len(commit.contributors)
        masks = {round(item, 3) for item in set((moved * count / SCALE).tolist())}
        mask = masks.pop() if len(masks) == 1 else -1.0
        if mask == int(mask) and int(mask).bit_count() == count:
            return int(mask)
        if self._in_step:
            text = f"round {commit.round} of {count} moved by {sorted({mask, *masks})}"
            self._journal.wrong("torn", text)
        return None


class Worker:
    """One life: a push a step, each at a place of its own."""

    def __init__(self, run: elasticps.Run, directory: Path, consistency: str) -> None:
        self._run = run
        self._directory = directory
        self._model = Tally()
        self._optimizer = run.optimizer(self._model, "sgd", lr=1.0)
        self._worker = run._welcome.worker
        self._journal = Writer(directory, os.environ["ELASTICPS_WORKER"], self._worker)
        self._reader = Reader(self._journal, self._model, consistency, run.turn.round - 1)

    def train(self) -> None:
        wrote_alone = False
        while True:
            stopping = (self._directory / "stop").exists()
            alone = stopping and self._run.world == 1
            if stopping and (not self._run.is_main or (alone and wrote_alone)):
                break
            self._step()
            wrote_alone = alone
            time.sleep(PACE_S)
        if self._run.is_main:
            write_final(self._directory, self._model)

    def _step(self) -> None:
        place = self._journal.place()
        if place >= PLACES:
            raise RuntimeError("the job has no place left for a push")
        amount = 1 + place % 7
        self._model.set_gradients(place, bit_of(self._journal.life), amount)
        self._journal.tries(place, amount, self._run.turn.round)
        retired: elasticps.WorkerRetired | None = None
        try:
            self._optimizer.step()
        except elasticps.WorkerRetired as leave:  # after a whole step
            retired = leave
        commit = self._run._membership.exchange.commit
        assert commit is not None
        count = len(commit.contributors) if self._worker in commit.contributors else 0
        mask = self._reader.check(commit, place, count)
        self._journal.told(place, commit.round, count, mask)
        if retired is not None:
            raise retired


def write_final(directory: Path, model: Tally) -> None:
    fresh = directory / "fresh.npz"
    rows = {name: item.numpy() for name, item in model.values().items()}
    np.savez(
        fresh,
        places=rows["places"],
        bits=rows["bits"],
        credit=rows["credit"],
        debit=rows["debit"],
    )
    fresh.rename(directory / "final.npz")


if __name__ == "__main__":
    with elasticps.join() as run:
        Worker(run, Path(sys.argv[1]), sys.argv[2]).train()
