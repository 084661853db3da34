"""A job's final numbers held against what all its workers wrote down: the verdict of an episode."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from dataclasses import dataclass, field, fields
from itertools import permutations
from pathlib import Path

import numpy as np

from tests.chaos.journal import Journals, Push, bit_of
from tests.chaos.model import MOST_WORKERS, SCALE

CLOSE = 1e-3
MANY = 1 << 60
WORDS = 20
"""How many violations are told in words; all are counted."""

Final = dict[str, "np.ndarray[tuple[int], np.dtype[np.float64]]"]


@dataclass(slots=True)
class Verdict:
    """What a job's pushes came to. Everything but ``acknowledged`` and ``unknown`` must be 0."""

    acknowledged: int = 0
    unknown: int = 0
    lost: int = 0
    duplicated: int = 0
    torn_rounds: int = 0
    bank_violations: int = 0
    version_violations: int = 0
    words: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        return self.lost + self.duplicated + self.torn_rounds + self.rest

    @property
    def rest(self) -> int:
        return self.bank_violations + self.version_violations

    def say(self, text: str) -> None:
        if len(self.words) < WORDS:
            self.words.append(text)

    def add(self, other: Verdict) -> None:
        for row in fields(self):
            setattr(self, row.name, getattr(self, row.name) + getattr(other, row.name))


def load_final(directory: Path) -> Final:
    with np.load(directory / "final.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def judge(journals: Journals, final: Final, consistency: str, staleness: int) -> Verdict:
    """All checks of a job that has ended in ``final``."""
    verdict = Verdict()
    in_rounds = consistency in ("sync", "dropping")
    rounds = _rounds(journals) if in_rounds else {}
    _places(journals, final, rounds, verdict)
    _seen(journals, verdict)
    _bank(journals, final, verdict, exact=in_rounds)
    if in_rounds:
        _whole_rounds(journals, final, rounds, verdict)
    if consistency == "bounded":
        _staleness(journals, staleness, verdict)
    return verdict


def _all(journals: Journals) -> list[Push]:
    return [push for life in journals.lives.values() for push in life.pushes.values()]


def _rounds(journals: Journals) -> dict[int, list[Push]]:
    """What was told of each round, of pushes that it counts and of those it left out."""
    rounds: dict[int, list[Push]] = defaultdict(list)
    for push in _all(journals):
        if push.count is not None:
            rounds[push.round].append(push)
    return rounds


def _places(
    journals: Journals, final: Final, rounds: dict[int, list[Push]], verdict: Verdict
) -> None:
    """Every push counted once if it was acknowledged, at most once if nobody knows."""
    left = final["places"].copy()
    for push in _all(journals):
        found, left[push.place] = float(left[push.place]), 0.0
        if push.count is None:
            verdict.unknown += 1
            told = {other.count for other in rounds.get(push.round, []) if other.count}
            counts = told or range(1, MOST_WORKERS + 1)
            allowed = {0.0, *(SCALE / count for count in counts)}
        elif push.count:
            verdict.acknowledged += 1
            allowed = {SCALE / push.count}
        else:
            allowed = {0.0}
        if any(abs(found - share) < CLOSE for share in allowed):
            continue
        kind = "lost" if found < max(allowed) else "duplicated"
        setattr(verdict, kind, getattr(verdict, kind) + 1)
        verdict.say(f"{kind}: {push} left {found} in place of {sorted(allowed)}")
    for place in np.flatnonzero(left):
        verdict.duplicated += 1
        verdict.say(f"duplicated: place {place} holds {left[place]}, which nobody pushed")


def _seen(journals: Journals, verdict: Verdict) -> None:
    """What the workers themselves saw wrong in what they read."""
    fields_of = {"version": "version_violations", "bank": "bank_violations", "torn": "torn_rounds"}
    for life in journals.lives.values():
        for kind, text in life.wrongs:
            name = fields_of[kind]
            setattr(verdict, name, getattr(verdict, name) + 1)
            verdict.say(f"life {life.number} ({life.uid}): {text}")


def _bank(journals: Journals, final: Final, verdict: Verdict, *, exact: bool) -> None:
    """The total of whole pushes is 0; a push of unknown outcome may be in one block alone."""
    pushes = _all(journals)
    sure = sum(SCALE * push.amount / push.count for push in pushes if push.count)
    unsure = sum(SCALE * push.amount for push in pushes if push.count is None)
    total = final["credit"] + final["debit"]
    bound = 0.0 if exact else unsure
    if float(np.abs(total).max()) > bound + CLOSE:
        verdict.bank_violations += 1
        verdict.say(f"credit and debit differ by {np.abs(total).max()}, at most {bound} expected")
    for name, sign in (("credit", 1), ("debit", -1)):
        values = sign * final[name]
        if values.min() < sure - CLOSE or values.max() > sure + unsure + CLOSE:
            verdict.bank_violations += 1
            span = f"{values.min()} to {values.max()}"
            verdict.say(f"{name} of {span} is not within {sure} and {sure + unsure}")


def _whole_rounds(
    journals: Journals, final: Final, rounds: dict[int, list[Push]], verdict: Verdict
) -> None:
    """All saw the same lives in a round, and those whose pushes the round holds are they."""
    held = final["places"]
    unknown = [push for push in _all(journals) if push.count is None]
    for number, pushes in sorted(rounds.items()):
        masks = {push.mask for push in pushes if push.mask is not None}
        members = {push.life for push in pushes if push.count}
        members |= {push.life for push in unknown if push.round == number and held[push.place]}
        expected = 0
        for life in members:
            expected |= bit_of(life)
        if len(masks) > 1 or (masks and masks != {expected}):
            verdict.torn_rounds += 1
            seen = sorted(f"{mask:b}" for mask in masks)
            verdict.say(f"round {number} was seen with lives {seen}, it holds {expected:b}")
    if len(np.unique(final["bits"])) != 1:
        verdict.torn_rounds += 1
        verdict.say(f"the bits end as {np.unique(final['bits'])[:5]}: not as one")


def _staleness(journals: Journals, staleness: int, verdict: Verdict) -> None:
    """Nobody began a step while another, a member before and after, was sure to be too far behind.

    The other's clock is at most the step that it began last. A member is told of its steps; one
    that slept until it was declared dead begins another when it wakes, and is not.
    """
    lives = [life.pushes.values() for life in journals.lives.values()]
    begun = [sorted((push.tried_at, push.round) for push in pushes) for pushes in lives]
    member = [sorted(p.tried_at for p in pushes if p.count is not None) for pushes in lives]
    for mine, other in permutations(range(len(lives)), 2):
        for tried_at, round_ in begun[mine]:
            count = bisect(begun[other], (tried_at, MANY))
            if not count or bisect(member[other], tried_at) == len(member[other]):
                continue
            its_round = begun[other][count - 1][1]
            if round_ - 1 - its_round > staleness:
                verdict.version_violations += 1
                verdict.say(f"step {round_} began while another was at {its_round}")
