"""What a node has measured of its links to others: an answer of its API."""

from __future__ import annotations

import msgspec

from elasticps.core.ids import NodeId


class MeasuredLink(msgspec.Struct, frozen=True, kw_only=True):
    """From this node ``to`` another: None is what was not measured, ``error`` says why."""

    to: NodeId
    round_trip_s: float | None = None
    bytes_per_s: float | None = None
    error: str = ""


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """The links from ``node``."""

    node: NodeId
    links: list[MeasuredLink]
