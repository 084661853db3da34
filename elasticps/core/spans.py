"""What a process was busy with, and when: spans, as they are recorded and gathered."""

from __future__ import annotations

import msgspec

MAX_STEPS = 100
MAX_WAIT_S = 120.0
MAX_SPANS = 100_000
"""Of all processes of a profile together: some 15 MB of JSON."""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """``began_ns`` is of the process's CLOCK_MONOTONIC. ``via`` is the transport, or the peer."""

    name: str
    began_ns: int
    took_ns: int
    block: int | None = None
    nbytes: int = 0
    via: str = ""
    round: int = 0

    @property
    def ended_ns(self) -> int:
        return self.began_ns + self.took_ns


class ProcessSpans(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's or shard server's. ``rank`` is a worker's. ``left_out``: the oldest, for room.

    ``ahead_ns`` is how far its node's clock is ahead of the one by which all are told, known to
    ``error_ns``.
    """

    node: str
    name: str
    rank: int | None = None
    spans: tuple[Span, ...] = ()
    left_out: int = 0
    ahead_ns: int = 0
    error_ns: int = 0

    @property
    def is_worker(self) -> bool:
        return self.rank is not None

    def on_one_clock(self) -> ProcessSpans:
        """The same by the clock by which all are told."""
        spans = tuple(
            msgspec.structs.replace(span, began_ns=span.began_ns - self.ahead_ns)
            for span in self.spans
        )
        return msgspec.structs.replace(self, spans=spans, ahead_ns=0)


class NodeSpans(msgspec.Struct, frozen=True, kw_only=True):
    """What one node's processes recorded of a job."""

    processes: tuple[ProcessSpans, ...] = ()


Interval = tuple[int, int]


def union(intervals: list[Interval]) -> list[Interval]:
    """The same time as intervals that do not touch, in order."""
    joined: list[Interval] = []
    for began, ended in sorted(intervals):
        if joined and began <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], ended))
        elif ended > began:
            joined.append((began, ended))
    return joined


def within(intervals: list[Interval], window: list[Interval]) -> list[Interval]:
    """What of ``intervals`` lies in ``window``; both as ``union`` gives them."""
    return [
        (max(began, since), min(ended, until))
        for began, ended in intervals
        for since, until in window
        if max(began, since) < min(ended, until)
    ]


def without(intervals: list[Interval], taken: list[Interval]) -> list[Interval]:
    """What of ``intervals`` lies outside ``taken``; both as ``union`` gives them."""
    left: list[Interval] = []
    for began, ended in intervals:
        for since, until in taken:
            if until <= began or since >= ended:
                continue
            if since > began:
                left.append((began, since))
            began = until
        if began < ended:
            left.append((began, ended))
    return left


def length(intervals: list[Interval]) -> int:
    return sum(ended - began for began, ended in intervals)
