"""Failovers as the cluster's view shows them: a server lost, its blocks led again, all copies back.

Every daemon follows them, so that a leader that has just been elected knows of the death that made
it so; who leads counts them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from elasticps.core.ids import BlockId, JobKey, NodeId, ServerId
from elasticps.core.plan import Entry
from elasticps.daemon.view import ClusterView

MOST_OPEN = 64
"""Losses that are followed at a time; the oldest is let go where copies never come back."""
MOST_SIGNS = 256
DECLARED_WITHIN_S = 1.0
"""Another daemon may declare a death, by the same refusal, before this one has asked."""

Place = tuple[JobKey, BlockId]
"""A block of any job."""


class Cause(StrEnum):
    NODE_DIED = "node_died"
    LEASE_EXPIRED = "lease_expired"
    SERVER_DIED = "server_died"
    LEFT = "left"


@dataclass(slots=True)
class Sign:
    """When a daemon's connection broke (monotonic), and whether its address refused another."""

    broke_s: float
    refused: bool = False


class Signs:
    """What this daemon's failure detector has seen, by node and incarnation; the newest alone."""

    def __init__(self) -> None:
        self._signs: dict[tuple[NodeId, str], Sign] = {}

    def broke(self, node: NodeId, incarnation: str, now_s: float) -> None:
        while len(self._signs) >= MOST_SIGNS:
            self._signs.pop(next(iter(self._signs)))
        self._signs[node, incarnation] = Sign(now_s)

    def refused(self, node: NodeId, incarnation: str) -> None:
        sign = self._signs.get((node, incarnation))
        if sign is not None:
            sign.refused = True

    def of(self, node: NodeId, incarnation: str) -> Sign | None:
        return self._signs.get((node, incarnation))


@dataclass(slots=True, kw_only=True, eq=False)
class Loss:
    """A server that is gone: at ``lost_s`` (monotonic) etcd did not list it any more.

    ``copies`` is how many living replicas in sync each of its blocks had before; not those beyond
    what its job asks for, which a block has while it moves. ``cause`` is known once others lead all
    that it ``led``.
    """

    server: ServerId
    node: NodeId
    incarnation: str
    lost_s: float
    drained: bool
    led: frozenset[Place]
    copies: dict[Place, int]
    cause: Cause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """Backups lead all that the lost server led, ``after_s`` its loss."""

    loss: Loss
    cause: Cause
    after_s: float
    detected_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed:
    """Its blocks have their copies back, ``after_s`` its loss."""

    loss: Loss
    cause: Cause
    after_s: float


@dataclass(slots=True)
class Failovers:
    """``look`` at the view each time that it has changed."""

    signs: Signs = field(default_factory=Signs)
    _homes: dict[ServerId, tuple[NodeId, str]] = field(default_factory=dict)
    _open: list[Loss] = field(default_factory=list)
    _looked_at: object = None

    def look(self, view: ClusterView, now_s: float) -> list[Promoted | Healed]:
        homes = {
            server.server: (record.node, record.incarnation)
            for record in view.nodes.values()
            for server in record.servers
        }
        gone = self._homes.keys() - homes.keys()
        before, self._homes = self._homes, homes
        if not (gone or self._open):
            return []
        looking_at = (homes, _revisions(view))
        if looking_at == self._looked_at:
            return []  # a plan is long, and most changes are none of its
        self._looked_at = looking_at
        entries = _entries(view)
        for server in sorted(gone):
            self._lose(view, server, before, entries, now_s)
        del self._open[:-MOST_OPEN]
        return [
            event for loss in list(self._open) for event in self._follow(view, loss, entries, now_s)
        ]

    def _lose(
        self,
        view: ClusterView,
        server: ServerId,
        before: dict[ServerId, tuple[NodeId, str]],
        entries: dict[Place, Entry],
        now_s: float,
    ) -> None:
        asked = {job.key: job.spec.replicas for job in view.active_jobs if job.spec}
        copies = {
            place: min(sum(holder in before for holder in entry.holders), asked[place[0]])
            for place, entry in entries.items()
            if server in entry.holders
        }
        led = frozenset(place for place in copies if entries[place].primary == server)
        if not led:
            return
        node, incarnation = before[server]
        self._open.append(
            Loss(
                server=server,
                node=node,
                incarnation=incarnation,
                lost_s=now_s,
                drained=node in view.drains,
                led=led,
                copies=copies,
            )
        )

    def _follow(
        self, view: ClusterView, loss: Loss, entries: dict[Place, Entry], now_s: float
    ) -> Iterable[Promoted | Healed]:
        """Blocks of jobs that have ended meanwhile are nobody's concern any more."""
        held = [place for place in loss.copies if place in entries]
        led = [entries[place] for place in loss.led if place in entries]
        after_s = now_s - loss.lost_s
        if not led or (loss.cause is None and loss.server in self._homes):
            self._open.remove(loss)  # its jobs are over; or it came back and leads as before
            return
        if loss.cause is None and all(entry.primary in self._homes for entry in led):
            loss.cause = self._cause(view, loss)
            yield Promoted(
                loss=loss,
                cause=loss.cause,
                after_s=after_s,
                detected_s=self._detected_s(loss, loss.cause),
            )
        if loss.cause and all(self._living(entries[place]) >= loss.copies[place] for place in held):
            self._open.remove(loss)
            yield Healed(loss=loss, cause=loss.cause, after_s=after_s)

    def _detected_s(self, loss: Loss, cause: Cause) -> float | None:
        """From the first sign to the loss; None where there was none."""
        sign = self.signs.of(loss.node, loss.incarnation)
        if sign is None or cause in (Cause.SERVER_DIED, Cause.LEFT):
            return None
        return max(0.0, loss.lost_s - sign.broke_s)

    def _living(self, entry: Entry) -> int:
        return sum(holder in self._homes for holder in entry.holders)

    def _cause(self, view: ClusterView, loss: Loss) -> Cause:
        record = view.nodes.get(loss.node)
        if record is not None and record.incarnation == loss.incarnation:
            return Cause.SERVER_DIED
        sign = self.signs.of(loss.node, loss.incarnation)
        if loss.drained and (sign is None or sign.broke_s > loss.lost_s):
            return Cause.LEFT
        if sign is None:
            return Cause.LEASE_EXPIRED
        soon = abs(loss.lost_s - sign.broke_s) < DECLARED_WITHIN_S
        return Cause.NODE_DIED if sign.refused or soon else Cause.LEASE_EXPIRED


def _revisions(view: ClusterView) -> list[tuple[JobKey, list[int]]]:
    """What the plans of the jobs that have not ended are as of."""
    return [(job.key, [part.revision for part in job.parts.values()]) for job in view.active_jobs]


def _entries(view: ClusterView) -> dict[Place, Entry]:
    """The whole plan of all jobs that have not ended."""
    return {(job.key, entry.block): entry for job in view.active_jobs for entry in job.entries}
