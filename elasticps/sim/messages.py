"""What the simulated processes say to each other: the wire's messages without their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any
from zlib import crc32

from elasticps.core.commands import Command, Floor
from elasticps.core.ids import BlockId, Generation, PlanEpoch, Round, Seq, WorkerId
from elasticps.core.replica import Applied, Commit, RoundOp
from elasticps.core.replication import Check
from elasticps.sim.network import Connection, Network

WORKER_NONE = WorkerId(0)
Pushes = tuple[tuple[WorkerId, Seq], ...]
"""What stands for numbers: whose pushes went into them. In a mean, in the order of the workers."""
Fingerprint = tuple[Any, ...]


def norm_of(gradient: Pushes) -> float:
    """What stands for a mean's norm: a number that no other mean has."""
    return float(crc32(repr(gradient).encode())) if gradient else 0.0


class Kind(Enum):
    PUSH = "push"
    PULL = "pull"
    INIT = "init"
    STATUS = "status"
    SAVE = "save"
    GROUP = "group"
    LEDGER = "ledger"
    SNAPSHOT = "snapshot"
    OP = "op"
    PROOF = "proof"


class Status(Enum):
    OK = "ok"
    FENCED = "fenced"
    BEHIND = "behind"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    STALE_GENERATION = "stale-generation"
    NOT_SERVING = "not-serving"


STATUS_OF = {
    Check.OK: Status.OK,
    Check.FENCED: Status.FENCED,
    Check.BEHIND: Status.BEHIND,
    Check.UNKNOWN: Status.UNKNOWN,
    Check.CONFLICT: Status.CONFLICT,
}
CHECK_OF = {status: check for check, status in STATUS_OF.items()}


@dataclass(slots=True, eq=False)
class Message:
    """A request: the fixed header, and in ``body`` what goes with its kind."""

    kind: Kind
    block: BlockId
    epoch: PlanEpoch
    body: Any
    worker: WorkerId = WORKER_NONE
    seq: Seq = Seq(0)
    round: Round = Round(0)


@dataclass(slots=True, eq=False)
class Request:
    """A request as its server holds it, to be answered now or later."""

    network: Network
    connection: Connection
    number: int
    message: Message

    def answer(self, status: Status, body: Any = None) -> None:
        self.network.reply(self.connection, self.number, status, body)


@dataclass(frozen=True, slots=True)
class PushBody:
    generation: Generation
    pushers: int
    commit: Commit | None


@dataclass(frozen=True, slots=True)
class PullBody:
    commit: Commit | None
    floor: Floor


@dataclass(frozen=True, slots=True)
class SaveBody:
    """Write the block for ``draft``. ``exact``: as after the round that ``proof`` proves."""

    draft: str
    proof: PullBody
    exact: bool
    written: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """A block's file."""

    round: Round
    log: tuple[Pushes, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """The answer to a pull: ``log`` is what was applied, round by round or push by push."""

    version: int
    round: Round
    log: tuple[Pushes, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One replicated op. ``fingerprint`` is the primary's state after it, for the checkers."""

    version: int
    fingerprint: Fingerprint
    op: RoundOp | None = None
    gradient: Pushes = ()
    at_once: bool = False
    commit: Commit | None = None
    initial: bool = False
    command: Command | None = None


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    version: int
    history: int
    fingerprint: Fingerprint
    round: Round
    generation: Generation
    initialized: bool
    applied: dict[WorkerId, Applied]
    log: tuple[Pushes, ...]
    prepared: RoundOp | None
    gradient: Pushes


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    version: int
    history: int
    fingerprint: Fingerprint
    ledger: bytes
