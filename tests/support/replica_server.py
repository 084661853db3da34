"""A shard server with one replica, in memory: it acts on the core's actions as a real one does.

In place of numbers a block has its ``log``: the ops that made it what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from elasticps.core.audit import mix
from elasticps.core.ids import Generation, PlanEpoch, Round, ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.core.replica import Applied, Replica, RoundOp
from elasticps.core.replication import (
    Action,
    Answer,
    CaughtUp,
    Check,
    Free,
    Replication,
    Role,
    Snapshot,
    Stop,
)

FIRST_VALUE = mix(0)
Op = RoundOp | None
"""What an op does to a block; None gives it its first value."""


@dataclass(frozen=True, slots=True)
class State:
    """A snapshot: the replica's state, and its ``log`` in place of the numbers."""

    version: int
    history: int
    round: Round
    generation: Generation
    initialized: bool
    applied: dict[WorkerId, Applied]
    log: tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class Pull:
    """A request that waits to be durable: what the worker will see, and who asked."""

    worker: WorkerId
    log: tuple[Op, ...]
    round: Round


@dataclass(slots=True)
class Stream:
    """A primary's stream to one peer: at most one message is under way."""

    ops: list[tuple[int, Op]] = field(default_factory=list)
    begun: bool = False
    sent: State | tuple[int, Op] | None = None
    arrived: Check | None = None


@dataclass(slots=True)
class Server:
    """One life of a shard server with its replica of the block."""

    id: ServerId
    replica: Replica = field(init=False)
    log: tuple[Op, ...] = ()
    streams: dict[ServerId, Stream] = field(default_factory=dict)
    answers: list[tuple[Pull, Check]] = field(default_factory=list)
    plans_seen: int = 0
    living: bool = True

    def __post_init__(self) -> None:
        self.replica = Replica(me=self.id)

    @property
    def replication(self) -> Replication:
        return self.replica.replication

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Snapshot(peer=peer):
                    assert peer not in self.streams
                    self.streams[peer] = Stream()
                case Stop(peer=peer):
                    del self.streams[peer]
                case Answer(request=Pull() as pull, check=check):
                    self.answers.append((pull, check))
                case Free():
                    self.log, self.replica = (), Replica(me=self.id)
                case CaughtUp(peer=peer):
                    assert peer in self.replication.promised_learners

    def adopt(self, entry: Entry) -> None:
        self.perform(self.replication.adopt(entry))
        if self.replication.role is not Role.PRIMARY:
            self.replica.drop_staged()

    def act(self, op: Op) -> None:
        """Apply an op as the primary."""
        version = self.replica.apply(op) if op else self.replica.initialize(FIRST_VALUE)
        self.log = (*self.log, op)
        for stream in self.streams.values():
            stream.ops.append((version, op))

    def snapshot(self) -> State:
        return State(
            version=self.replication.version,
            history=self.replication.history,
            round=self.replica.round,
            generation=self.replica.generation,
            initialized=self.replica.initialized,
            applied=dict(self.replica.applied),
            log=self.log,
        )

    def install(self, state: State) -> None:
        self.replica.drop_staged()
        self.replica.round, self.replica.generation = state.round, state.generation
        self.replica.initialized, self.replica.applied = state.initialized, dict(state.applied)
        self.log = state.log
        self.replication.install(state.version, state.history)

    def follow(self, op: Op) -> None:
        if op is None:
            self.replica.initialized = True
            self.replication.follow(FIRST_VALUE)
        else:
            self.replica.apply(op, following=True)
        self.log = (*self.log, op)

    def receive(self, epoch: PlanEpoch, message: State | tuple[int, Op]) -> Check:
        if isinstance(message, State):
            check = self.replication.check_snapshot(epoch, message.version)
            if check is Check.OK:
                self.install(message)
            return check
        version, op = message
        check = self.replication.check_op(epoch, version)
        if check is Check.OK and version > self.replication.version:
            self.follow(op)
        return check
