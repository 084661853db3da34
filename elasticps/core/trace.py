"""Spans as a trace that Perfetto and chrome://tracing open (the Trace Event Format's JSON object).

Spans of a worker's script lie within each other on one line; requests that are under way together
get as many lines as they need, so that no two spans of a line overlap halfway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from elasticps.core.spans import ProcessSpans, Span

OF_THE_SCRIPT = frozenset({"step", "forward", "backward", "optimizer.step", "wait"})
OF_THE_SERVER = frozenset({"stage", "apply"})
"""What one thread does one after the other: the rest is under way side by side."""
FIRST_LANE = 2
NS_PER_US = 1000


class TraceEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``ph`` X is a span, M a name; ``ts`` and ``dur`` are microseconds since the first span."""

    ph: str
    pid: int
    name: str
    tid: int
    ts: float | None = None
    dur: float | None = None
    cat: str = ""
    args: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.ph == "X" and (self.ts is None or self.dur is None):
            raise ValueError("a span without ts or dur")


def trace_events(processes: Sequence[ProcessSpans]) -> Iterator[TraceEvent]:
    """The events of processes whose spans are on one clock."""
    first = min((span.began_ns for each in processes for span in each.spans), default=0)
    for pid, process in enumerate(processes, start=1):
        yield _named("process_name", pid, 0, _title(process))
        yield TraceEvent(
            ph="M", pid=pid, tid=0, name="process_sort_index", args={"sort_index": pid}
        )
        lanes = _lanes(process)
        for lane in sorted({FIRST_LANE - 1, *lanes}):
            yield _named("thread_name", pid, lane, _lane_name(process, lane))
        for span, lane in zip(process.spans, lanes, strict=True):
            yield TraceEvent(
                ph="X",
                pid=pid,
                tid=lane,
                name=span.name,
                cat="worker" if process.is_worker else "server",
                ts=(span.began_ns - first) / NS_PER_US,
                dur=span.took_ns / NS_PER_US,
                args=_arguments(span),
            )


def _title(process: ProcessSpans) -> str:
    role = f"rank {process.rank}, " if process.is_worker else ""
    return f"{process.node}: {role}{process.name}"


def _lane_name(process: ProcessSpans, lane: int) -> str:
    if lane < FIRST_LANE:
        return "script" if process.is_worker else "blocks"
    return f"{'requests' if process.is_worker else 'under way'} {lane - FIRST_LANE + 1}"


def _named(name: str, pid: int, tid: int, text: str) -> TraceEvent:
    return TraceEvent(ph="M", pid=pid, tid=tid, name=name, args={"name": text})


def _arguments(span: Span) -> dict[str, Any]:
    known = {"round": span.round, "block": span.block, "bytes": span.nbytes, "via": span.via}
    return {key: item for key, item in known.items() if item not in (None, 0, "")}


def _lanes(process: ProcessSpans) -> list[int]:
    """For each span its line: the first that is free when it begins."""
    rows = process.spans
    in_order = OF_THE_SCRIPT if process.is_worker else OF_THE_SERVER
    found = [FIRST_LANE - 1] * len(rows)
    free_at: list[int] = []
    side_by_side = [index for index, span in enumerate(rows) if span.name not in in_order]
    for index in sorted(side_by_side, key=lambda index: rows[index].began_ns):
        span = rows[index]
        lane = next((lane for lane, at in enumerate(free_at) if at <= span.began_ns), None)
        if lane is None:
            lane = len(free_at)
            free_at.append(0)
        free_at[lane] = span.ended_ns
        found[index] = FIRST_LANE + lane
    return found
