"""What a job of ``elasticps bench`` has measured, as numbers of its status."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

PREFIX = "bench/"
BYTES = "bytes/"


class PushPull(msgspec.Struct, frozen=True, kw_only=True):
    """Steps in which each worker pushed ``nbytes`` of gradient and pulled as many of value.

    Times are seconds of a step. ``wrong`` of the worker's elements were not as SGD makes them.
    ``sent`` are the bytes that went between worker and servers, by transport.
    """

    nbytes: int
    steps: int
    p50_s: float
    p99_s: float
    wrong: int
    sent: Mapping[str, int]

    @property
    def gb_per_s(self) -> float:
        """Of one worker, both ways together."""
        return 2 * self.nbytes / self.p50_s / 1e9

    @property
    def transport(self) -> str:
        """By which most went; empty where none is told."""
        return max(self.sent, key=lambda name: self.sent[name], default="")


def to_metrics(found: PushPull) -> dict[str, float]:
    fields = msgspec.structs.asdict(found)
    sent: Mapping[str, int] = fields.pop("sent")
    numbers = {f"{PREFIX}{key}": float(item) for key, item in fields.items()}
    return numbers | {f"{PREFIX}{BYTES}{name}": float(count) for name, count in sent.items()}


def from_metrics(metrics: Mapping[str, float | None]) -> PushPull | None:
    """None where not all of it is there, or a number is none."""
    found: dict[str, object] = {}
    sent: dict[str, int] = {}
    for key, item in metrics.items():
        if not key.startswith(PREFIX):
            continue
        if item is None or not math.isfinite(item):
            return None
        name = key.removeprefix(PREFIX)
        if name.startswith(BYTES):
            sent[name.removeprefix(BYTES)] = int(item)
        else:
            found[name] = item if name.endswith("_s") else int(item)
    try:
        return msgspec.convert({**found, "sent": sent}, PushPull)
    except msgspec.ValidationError:
        return None
