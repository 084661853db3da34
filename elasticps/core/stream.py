"""The order of one replica stream: the whole state first, then every op, and over after a break."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Generic, TypeVar

from elasticps.core.replication import Check

Op = TypeVar("Op")

MAX_OPS_QUEUED = 32
"""Ops that a slow learner may lag behind before it gets a new snapshot instead."""


class Due(Enum):
    """What goes to the peer next."""

    SNAPSHOT = "snapshot"
    OP = "op"
    NOTHING = "nothing"
    OVERFLOW = "overflow"
    """The peer fell too far behind: the stream starts over."""


class Sent(Enum):
    """What became of a message, by the peer's answer to it."""

    TAKEN = "taken"
    AGAIN = "again"
    """The peer has not seen this primary's plan yet: say it once more."""
    REFUSED = "refused"
    """The peer cannot go on from where it is: the stream starts over."""


class StreamOrder(Generic[Op]):
    """What one stream has still to say. ``start_over`` after every break."""

    def __init__(self) -> None:
        self._ops: deque[Op] = deque()
        self._begun = False
        self._overflowed = False

    def publish(self, op: Op, *, counted: bool) -> None:
        """An op was counted at the primary; a snapshot still to be made contains it.

        A peer that is ``counted`` holds up the clients, and so bounds its own queue.
        """
        if not self._begun or self._overflowed:
            return
        if len(self._ops) >= MAX_OPS_QUEUED and not counted:
            self._overflowed = True
            self._ops.clear()
        else:
            self._ops.append(op)

    def due(self) -> Due:
        if not self._begun:
            return Due.SNAPSHOT
        if self._overflowed:
            return Due.OVERFLOW
        return Due.OP if self._ops else Due.NOTHING

    def begin(self) -> None:
        """The snapshot is made now: what is published from here on follows it."""
        self._begun = True

    def take(self) -> Op:
        return self._ops.popleft()

    def start_over(self) -> None:
        self._ops.clear()
        self._begun = self._overflowed = False


def outcome(answer: Check) -> Sent:
    if answer is Check.OK:
        return Sent.TAKEN
    return Sent.AGAIN if answer is Check.BEHIND else Sent.REFUSED
