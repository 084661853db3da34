"""Whether a process that ended is started again, and when: a pure decision.

The caller tells when a process started and how it ended, and does as it is told. Times are
seconds on one monotonic clock, passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, StrEnum


class RestartWhen(StrEnum):
    ALWAYS = "always"
    ON_SIGNAL = "on-signal-only"
    NEVER = "never"


class Ended(Enum):
    """How a process ended, as far as a restart depends on it."""

    CODE = "it exited by itself, with any code"
    SIGNAL = "a signal that nobody here sent"
    NOT_STARTED = "it could not be started"
    REQUESTED = "it was stopped on purpose"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When to restart, how long to wait before, and when to give up.

    The delay starts at ``first_delay_s``, doubles up to ``max_delay_s``, and starts anew after a
    life of ``reset_after_s``. More than ``max_restarts`` within ``window_s`` is given up.
    """

    when: RestartWhen = RestartWhen.ALWAYS
    first_delay_s: float = 0.1
    max_delay_s: float = 10.0
    reset_after_s: float = 30.0
    max_restarts: int = 10
    window_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after ``after_s`` seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it down: it fails too often. ``reason`` is for the user."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    """Leave it down: the policy wants no restart."""


Decision = Restart | GiveUp | Stay


class RestartTracker:
    """The restarts of one process. Feed it ``started`` and ``exited`` in turn."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._next_delay_s = policy.first_delay_s
        self._recent: deque[float] = deque()
        self._started_at: float | None = None

    def started(self, now: float) -> None:
        self._started_at = now

    def exited(self, now: float, how: Ended) -> Decision:
        lifetime_s = 0.0 if self._started_at is None else now - self._started_at
        self._started_at = None
        if not self._wants_restart(how):
            return Stay()
        if how is not Ended.NOT_STARTED and lifetime_s >= self._policy.reset_after_s:
            self._next_delay_s = self._policy.first_delay_s
        while self._recent and now - self._recent[0] >= self._policy.window_s:
            self._recent.popleft()
        if len(self._recent) >= self._policy.max_restarts:
            return GiveUp(
                f"gave up after {self._policy.max_restarts} restarts"
                f" within {self._policy.window_s:g} s"
            )
        self._recent.append(now)
        delay_s = self._next_delay_s
        self._next_delay_s = min(2 * delay_s, self._policy.max_delay_s)
        return Restart(delay_s)

    def _wants_restart(self, how: Ended) -> bool:
        if how is Ended.REQUESTED:
            return False
        if self._policy.when is RestartWhen.ON_SIGNAL:
            return how is not Ended.CODE
        return self._policy.when is RestartWhen.ALWAYS
