"""A running cluster as its API has told it: what the cluster's checks look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from elasticps.daemon.machine_facts import MachineFacts
from elasticps.daemon.measured_link import MeasuredLink
from elasticps.doctor.etcd_http import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A registered node. ``reachable``: the daemon that was asked hears it."""

    name: str
    state: str
    reachable: bool
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """A job that has not ended."""

    name: str
    replicas: int
    under_replicated: int
    pending_moves: int
    failed_checkpoints: int
    lost: int
    duplicated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """``unasked``: why a node's facts are not there; ``unmeasured``: why its links are not.

    ``links`` are from the node that is the key, ``left_out`` how many were not measured for width.
    """

    cluster: str
    leader: str | None
    members: tuple[Member, ...]
    jobs: tuple[JobSeen, ...] = ()
    facts: Mapping[str, MachineFacts] = field(default_factory=dict)
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    unasked: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, tuple[MeasuredLink, ...]] = field(default_factory=dict)
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0
