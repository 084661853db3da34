"""The replica's part that every replicated thing shares: role, epoch, version, and its peers.

A primary streams a snapshot and then every op to its peers. It answers a client only when every
peer that the plan counts on has applied the op. A learner that has caught up is *promised*: from
then on it is waited for like an in-sync backup, until a later plan says otherwise. Only that
makes it safe for the leader to promote it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from elasticps.core.audit import mix
from elasticps.core.ids import PlanEpoch, ServerId
from elasticps.core.plan import Entry

CATCH_UP_OPS = 8
"""A learner that is this close is waited for: under a steady load it would always be one behind."""


class Role(Enum):
    NONE = "none"
    LEARNER = "learner"
    IN_SYNC = "in-sync"
    PRIMARY = "primary"


class Check(Enum):
    """Why a request cannot be served here and now; OK when it can."""

    OK = "ok"
    FENCED = "fenced"
    BEHIND = "behind"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Send ``peer`` the whole state as of now; every later op follows on the same stream."""

    peer: ServerId


@dataclass(frozen=True, slots=True)
class Stop:
    """End the stream to ``peer``: it is no replica of this block any more."""

    peer: ServerId


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Tell the leader that ``peer`` holds everything and is waited for from now on."""

    peer: ServerId
    epoch: PlanEpoch


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request that waited for its op to be durable, or to learn that it will not be."""

    request: object
    check: Check


@dataclass(frozen=True, slots=True)
class Free:
    """This server is no replica of the block any more: drop its memory."""


Action = Snapshot | Stop | CaughtUp | Answer | Free


@dataclass(slots=True)
class _Peer:
    """``joins_at``: the version from which on a learner that is almost there is waited for."""

    acked: int = -1
    in_sync: bool = False
    promised: bool = False
    joins_at: int | None = None

    @property
    def counted(self) -> bool:
        """Is this peer waited for before a client is answered?"""
        return self.in_sync or self.promised or self.joins_at is not None


@dataclass(slots=True)
class Replication:
    """One block's replication state on server ``me``."""

    me: ServerId
    min_insync: int = 1
    role: Role = Role.NONE
    epoch: PlanEpoch = PlanEpoch(0)
    version: int = 0
    history: int = 0
    holds_state: bool = False
    peers: dict[ServerId, _Peer] = field(default_factory=dict)
    durable: int = 0
    """The newest version that every counted replica has applied, while they were enough."""
    _waiting: list[tuple[int, object]] = field(default_factory=list)
    _term: tuple[ServerId, PlanEpoch] | None = None
    _continues: bool = False

    def adopt(self, entry: Entry) -> list[Action]:
        """Take the role that ``entry`` gives this server. Older entries change nothing."""
        if entry.epoch <= self.epoch:
            return []
        self.epoch = entry.epoch
        self.role = self._role_in(entry)
        actions: list[Action] = []
        if (entry.primary, entry.since) != self._term or self.role is not Role.PRIMARY:
            actions += self._end_term()
        if (entry.primary, entry.since) != self._term or self.role is Role.NONE:
            self._term, self._continues = (entry.primary, entry.since), False
        if self.role is Role.PRIMARY:
            return actions + self._lead(entry)
        if self.role is Role.NONE:
            self.holds_state = False
            actions.append(Free())
        return actions

    def _end_term(self) -> list[Action]:
        """What was known of the peers is of another term, or of none."""
        actions: list[Action] = [Stop(peer) for peer in self.peers]
        actions += [Answer(request, Check.FENCED) for _, request in self._waiting]
        self.peers.clear()
        self._waiting.clear()
        return actions

    def _role_in(self, entry: Entry) -> Role:
        if entry.primary == self.me:
            if entry.fresh:
                self.holds_state = True
            # A primary without state would serve a fresh block in place of a lost one.
            return Role.PRIMARY if self.holds_state else Role.NONE
        if self.me in entry.in_sync:
            return Role.IN_SYNC
        return Role.LEARNER if self.me in entry.learners else Role.NONE

    def _lead(self, entry: Entry) -> list[Action]:
        """Go on with the streams to in-sync peers, end the others, begin those that are missing.

        A learner's stream is for one epoch: a plan that this server has not seen may have dropped
        the learner and taken it on again, empty.
        """
        wanted = (*entry.in_sync, *entry.learners)
        kept = {peer: state for peer, state in self.peers.items() if peer in entry.in_sync}
        actions: list[Action] = [Stop(peer) for peer in self.peers if peer not in kept]
        actions += [Snapshot(peer) for peer in wanted if peer not in kept]
        self.peers = {peer: kept.get(peer) or _Peer() for peer in wanted}
        for peer in entry.in_sync:
            self.peers[peer].in_sync = True
        return actions + self._released()

    def check(self, epoch: PlanEpoch) -> Check:
        """May a client's request under ``epoch`` be served by this replica?"""
        if epoch < self.epoch:
            return Check.FENCED
        if epoch > self.epoch:
            return Check.BEHIND
        return Check.OK if self.role is Role.PRIMARY else Check.UNKNOWN

    # -- the primary's side ---------------------------------------------------------------------

    def record(self, digest: int) -> int:
        """Count an op that the primary has just applied; returns the block's new version."""
        assert self.role is Role.PRIMARY
        return self._advance(digest)

    def acked(self, peer: ServerId, version: int) -> list[Action]:
        """``peer`` has applied everything up to ``version``."""
        state = self.peers.get(peer)
        if state is None:
            return []
        state.acked = max(state.acked, version)
        actions: list[Action] = []
        if state.joins_at is None and self.version - state.acked <= CATCH_UP_OPS:
            state.joins_at = self.version
        if not state.promised and state.joins_at is not None and state.acked >= state.joins_at:
            state.promised = True
            if not state.in_sync:
                actions.append(CaughtUp(peer, self.epoch))
        return actions + self._released()

    def restarted(self, peer: ServerId) -> list[Action]:
        """The stream to ``peer`` broke: it starts over with a snapshot. The promise stands."""
        state = self.peers.get(peer)
        if state is None:
            return []
        state.acked, state.joins_at = -1, None
        return self._released()

    def counts(self, peer: ServerId) -> bool:
        """Is ``peer`` waited for before a client is answered?"""
        state = self.peers.get(peer)
        return state is not None and state.counted

    @property
    def promised_learners(self) -> list[ServerId]:
        """Learners that hold everything and are waited for, though the plan does not say so yet."""
        return [name for name, peer in self.peers.items() if peer.promised and not peer.in_sync]

    @property
    def all_acked(self) -> bool:
        """Does every peer, counted or not, hold all that this primary has?"""
        return all(peer.acked == self.version for peer in self.peers.values())

    def answer_when_durable(self, request: object) -> list[Action]:
        """Answer ``request`` once the present version is durable, or FENCED if deposed first."""
        if not (self.peers or self._waiting) and self.min_insync <= 1:
            self.durable = self.version
            return [Answer(request, Check.OK)]
        self._waiting.append((self.version, request))
        return self._released()

    def _released(self) -> list[Action]:
        """Answer what has become durable; nothing new is while there are too few replicas."""
        waited = [peer.acked for peer in self.peers.values() if peer.counted]
        if 1 + len(waited) >= self.min_insync:
            self.durable = max(self.durable, min([self.version, *waited]))
        ready = [request for version, request in self._waiting if version <= self.durable]
        self._waiting = [item for item in self._waiting if item[0] > self.durable]
        return [Answer(request, Check.OK) for request in ready]

    # -- the backup's side ----------------------------------------------------------------------

    def _check_stream(self, epoch: PlanEpoch) -> Check:
        if epoch < self.epoch:
            return Check.FENCED
        if epoch > self.epoch:
            return Check.BEHIND
        return Check.OK if self.role in (Role.LEARNER, Role.IN_SYNC) else Check.UNKNOWN

    def check_snapshot(self, epoch: PlanEpoch, version: int) -> Check:
        """May a snapshot as of ``version`` replace this replica's state? CONFLICT: it is late.

        A stream that broke may still have a snapshot under way when its successor is further on.
        """
        verdict = self._check_stream(epoch)
        late = self._continues and version < self.version
        return Check.CONFLICT if verdict is Check.OK and late else verdict

    def install(self, version: int, history: int) -> None:
        """A snapshot's state has replaced this replica's."""
        self.version, self.history, self.holds_state = version, history, True
        self._continues = True

    def check_op(self, epoch: PlanEpoch, version: int) -> Check:
        """May the op that makes ``version`` be applied next? CONFLICT: send a snapshot first.

        That is after a gap, and after a change of primary: equal versions may then differ.
        """
        verdict = self._check_stream(epoch)
        if verdict is not Check.OK:
            return verdict
        in_order = self._continues and version <= self.version + 1
        return Check.OK if in_order else Check.CONFLICT

    def check_proof(self, epoch: PlanEpoch) -> Check:
        """May a primary's word that a round is committed be acted on? CONFLICT: not before its
        snapshot, for what is held here may be of another primary."""
        verdict = self._check_stream(epoch)
        return Check.CONFLICT if verdict is Check.OK and not self._continues else verdict

    def follow(self, digest: int) -> int:
        """Count an op that a backup has just applied; returns the new version."""
        return self._advance(digest)

    def _advance(self, digest: int) -> int:
        self.version += 1
        self.history = mix(self.history ^ digest)
        return self.version
