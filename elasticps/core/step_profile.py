"""Where a step's time goes, out of the spans of some steps, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean, median

import msgspec

from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.spans import (
    Interval,
    ProcessSpans,
    Span,
    length,
    union,
    within,
    without,
)

MUCH = 0.2
"""The part of a step from which the wait for the slowest worker is what to mend."""
HALF = 0.5
STEP = "optimizer.step"
NETWORK = ("tcp", "tls")
NS_PER_S = 1e9


class WorkerTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a step of one worker, on its script's thread: they add up to ``step_s``.

    ``script_s``: what is neither forward nor backward, nor a wait. ``others_s``: waits until the
    slowest worker has come to its step; ``push_s``, ``vote_s`` and ``pull_s``: waits while that is
    under way, one of them at a time; ``rest_s``: other waits. ``over_network`` is the part of
    ``pushed_bytes`` that went to other machines.
    """

    worker: str
    node: str
    rank: int
    steps: int
    step_s: float
    forward_s: float
    backward_s: float
    script_s: float
    others_s: float
    push_s: float
    vote_s: float
    pull_s: float
    rest_s: float
    pushed_bytes: float
    over_network: float

    @property
    def compute_s(self) -> float:
        return self.forward_s + self.backward_s + self.script_s

    @property
    def exchange_s(self) -> float:
        return self.push_s + self.vote_s + self.pull_s + self.rest_s


class ServerTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a step of one shard server: in its thread, and while a backup is waited for."""

    node: str
    name: str
    stage_s: float
    apply_s: float
    replicate_s: float


class StepProfile(msgspec.Struct, frozen=True, kw_only=True):
    """``bound``: what a step's length comes from; ``advice``: a line that says so and what to do.

    ``clock_error_s``: how far the nodes' clocks may be apart.
    """

    steps: int
    step_s: float
    workers: tuple[WorkerTimes, ...]
    servers: tuple[ServerTimes, ...]
    bound: str
    advice: str
    clock_error_s: float
    left_out: int


def step_profile(
    processes: Sequence[ProcessSpans], codec: str = DEFAULT_CODEC, *, in_step: bool = True
) -> StepProfile:
    """Of processes whose spans are on one clock; ``codec`` is the job's.

    ``in_step``: its rounds wait for every worker.
    """
    workers = [each for each in processes if each.is_worker and _named(each.spans, "step")]
    latest = _last_to_come(workers) if in_step else {}
    times = tuple(_worker_times(each, latest) for each in workers)
    steps = max((each.steps for each in times), default=0)
    servers = tuple(_server_times(each, steps or 1) for each in processes if not each.is_worker)
    bound, advice = _bound(times, servers, codec)
    return StepProfile(
        steps=steps,
        step_s=fmean(each.step_s for each in times) if times else 0.0,
        workers=times,
        servers=servers,
        bound=bound,
        advice=advice,
        clock_error_s=max((each.error_ns for each in processes), default=0) / NS_PER_S,
        left_out=sum(each.left_out for each in processes),
    )


def in_the_steps(processes: Sequence[ProcessSpans]) -> list[ProcessSpans]:
    """Without what servers did before the first step that is recorded, and after the last."""
    steps = [span for each in processes if each.is_worker for span in _named(each.spans, "step")]
    if not steps:
        return list(processes)
    began, ended = min(s.began_ns for s in steps), max(s.ended_ns for s in steps)

    def kept(process: ProcessSpans) -> ProcessSpans:
        spans = (s for s in process.spans if s.ended_ns > began and s.began_ns < ended)
        return msgspec.structs.replace(process, spans=tuple(spans))

    return [each if each.is_worker else kept(each) for each in processes]


def _last_to_come(workers: Iterable[ProcessSpans]) -> dict[int, int]:
    """For each round, when the last worker of it came to its step."""
    latest: dict[int, int] = {}
    for span in chain.from_iterable(_named(each.spans, STEP) for each in workers):
        latest[span.round] = max(span.began_ns, latest.get(span.round, 0))
    return latest


def _worker_times(process: ProcessSpans, latest: dict[int, int]) -> WorkerTimes:
    steps = _named(process.spans, "step")
    window = _time(steps)
    total = length(window)
    waits = within(_time(_named(process.spans, "wait")), window)
    pushes = _named(process.spans, "push")
    alone = [
        (span.began_ns, min(span.ended_ns, latest.get(span.round, 0)))
        for span in _named(process.spans, STEP)
    ]
    others = union([(began, ended) for began, ended in alone if began < ended])
    left, parts = waits, []
    for part in (others, *(_time(_named(process.spans, n)) for n in ("push", "vote", "pull"))):
        parts.append(length(within(part, left)))
        left = without(left, part)
    forward, backward = (
        length(within(_time(_named(process.spans, name)), window))
        for name in ("forward", "backward")
    )
    a_step = NS_PER_S * len(steps)
    others_s, push_s, vote_s, pull_s = (part / a_step for part in parts)
    # A whole round by one request (decision 24) is push, vote and pull: its time is in the rest.
    pushes = [*pushes, *_named(process.spans, "round")]
    pushed = sum(p.nbytes for p in pushes if any(a <= p.began_ns < b for a, b in window))
    assert process.rank is not None
    return WorkerTimes(
        worker=process.name,
        node=process.node,
        rank=process.rank,
        steps=len(steps),
        step_s=total / a_step,
        forward_s=forward / a_step,
        backward_s=backward / a_step,
        script_s=(total - forward - backward - length(waits)) / a_step,
        others_s=others_s,
        push_s=push_s,
        vote_s=vote_s,
        pull_s=pull_s,
        rest_s=length(left) / a_step,
        pushed_bytes=pushed / len(steps),
        over_network=sum(p.nbytes for p in pushes if p.via in NETWORK)
        / (sum(p.nbytes for p in pushes) or 1),
    )


def _server_times(process: ProcessSpans, steps: int) -> ServerTimes:
    stage, apply, replicate = (
        length(_time(_named(process.spans, name))) / NS_PER_S / steps
        for name in ("stage", "apply", "replicate")
    )
    return ServerTimes(
        node=process.node,
        name=process.name,
        stage_s=stage,
        apply_s=apply,
        replicate_s=replicate,
    )


def _bound(
    workers: Sequence[WorkerTimes], servers: Sequence[ServerTimes], codec: str
) -> tuple[str, str]:
    """What a step's length comes from, and the line that tells a user what to do."""
    if not workers:
        return (
            "",
            "no worker ended a step in the time: see `elasticps status`, or a longer --timeout",
        )
    slowest = min(workers, key=lambda each: each.others_s)
    step_s = slowest.step_s or 1.0
    waits = [each.others_s for each in workers if each is not slowest]
    if waits and fmean(waits) > MUCH * step_s:
        usual = median(each.compute_s for each in workers if each is not slowest)
        return "slowest worker", (
            f"waits for the slowest worker, {slowest.worker} on {slowest.node}: it computes for "
            f"{slowest.compute_s * 1e3:.1f} ms a step, the median of the others "
            f"{usual * 1e3:.1f} ms; look at that machine (`elasticps top`), or --backup-workers 1"
        )
    share = slowest.compute_s / step_s
    if share >= HALF:
        return "compute", (
            f"compute-bound: the script computes in {share:.0%} of a step; more workers "
            "(`elasticps scale`), faster machines or more threads a worker make it shorter"
        )
    busiest = max(servers, key=lambda each: each.stage_s + each.apply_s, default=None)
    if busiest and busiest.stage_s + busiest.apply_s >= HALF * slowest.exchange_s:
        busy_ms = (busiest.stage_s + busiest.apply_s) * 1e3
        return "apply", (
            f"apply-bound: the shard server on {busiest.node} sums and applies for {busy_ms:.1f} "
            "ms a step; another node takes a part of the blocks"
        )
    if slowest.vote_s >= HALF * slowest.exchange_s:
        return "agreement", (
            f"agreement-bound: {slowest.vote_s * 1e3:.1f} ms a step for the round trip to the "
            "job's ledger; larger batches, or --strategy local-sgd:h=16, make fewer rounds"
        )
    replicated_s = max((each.replicate_s for each in servers), default=0.0)
    if replicated_s >= HALF * slowest.exchange_s and replicated_s >= slowest.pull_s:
        return "replication", (
            f"replication-bound: copies are under way for {replicated_s * 1e3:.1f} ms a step; "
            "--replicas 1 with checkpoints, or --strategy local-sgd:h=16, send less"
        )
    moved = (
        f"{slowest.exchange_s * 1e3:.1f} of {step_s * 1e3:.1f} ms a step go to pushing "
        f"{slowest.pushed_bytes / 1e6:.1f} MB and pulling the parameters"
    )
    if not slowest.over_network:
        return "exchange", (
            f"exchange-bound on one machine: {moved}; larger batches, or --strategy "
            "local-sgd:h=16, exchange less often (a codec would cost more than it saves here)"
        )
    way = "try --codec int8" if codec == DEFAULT_CODEC else "try --strategy local-sgd:h=16"
    return "wire", f"wire-bound: {moved}; {way}"


def _named(spans: Iterable[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def _time(spans: Iterable[Span]) -> list[Interval]:
    return union([(span.began_ns, span.ended_ns) for span in chain(spans)])
