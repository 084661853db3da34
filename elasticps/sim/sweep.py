"""Many seeds, one after the other: the sum of what they showed, and the ablations' proof."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec

from elasticps.sim.ablations import ABLATIONS, without
from elasticps.sim.checkpoints import Open, PowerCuts
from elasticps.sim.world import Outcome, World

MOST_VOID = 0.15
"""A sweep in which more runs prove nothing is no proof either."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """``trace_sha256`` is of all runs' traces, in order; ``first`` and ``replay`` say which."""

    seeds: int
    violations: int
    void: int
    seeds_per_minute: int
    trace_sha256: str
    events: int

    @property
    def proves(self) -> bool:
        return not self.violations and self.void <= self.seeds * MOST_VOID


class Caught(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    checker: str


class Ablated(msgspec.Struct, frozen=True, kw_only=True):
    """Which parts' absence was noticed, at which seed, by which checker."""

    caught: int
    of: int
    by: dict[str, Caught]


def play(seed: int, checkpoints: Open) -> Outcome:
    """One run of a cluster, then of its ``checkpoints``; the same one every time."""
    cluster = World(seed).run()
    if cluster.violation:
        return cluster
    disk = PowerCuts(seed, checkpoints).run()
    return replace(
        disk if disk.violation else cluster,
        events=cluster.events + disk.events,
        digest=hashlib.sha256(f"{cluster.digest} {disk.digest}".encode()).hexdigest(),
    )


def sweep(seeds: Iterable[int], tell: Callable[[Outcome], None], checkpoints: Open) -> Summary:
    """Play all seeds; ``tell`` hears of each outcome."""
    began = time.perf_counter()
    count = violations = void = events = 0
    traces = hashlib.sha256()
    for seed in seeds:
        outcome = play(seed, checkpoints)
        count += 1
        violations += bool(outcome.violation)
        void += bool(outcome.void)
        events += outcome.events
        traces.update(outcome.digest.encode())
        tell(outcome)
    minutes = (time.perf_counter() - began) / 60
    return Summary(
        seeds=count,
        violations=violations,
        void=void,
        seeds_per_minute=round(count / minutes) if count else 0,
        trace_sha256=traces.hexdigest(),
        events=events,
    )


def first_catch(name: str, seeds: Iterable[int], checkpoints: Open) -> Caught | None:
    """The first seed at which a checker notices that one part is missing."""
    with without(name):
        for seed in seeds:
            outcome = play(seed, checkpoints)
            if outcome.violation:
                return Caught(seed=seed, checker=outcome.checker)
    return None


def ablate(
    names: Iterable[str],
    seeds: range,
    tell: Callable[[str, Caught | None], None],
    checkpoints: Open,
) -> Ablated:
    """Take each part out in turn; ``tell`` hears of each."""
    chosen = list(names)
    by: dict[str, Caught] = {}
    for name in chosen:
        caught = first_catch(name, seeds, checkpoints)
        tell(name, caught)
        if caught is not None:
            by[name] = caught
    return Ablated(caught=len(by), of=len(chosen), by=by)


def all_parts() -> list[str]:
    return list(ABLATIONS)
