"""Whether the node may be given work, and if not, why and since when: ``GET /readyz``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec


class Unready(msgspec.Struct, frozen=True, kw_only=True):
    """One reason, and since when it holds. It names nobody: whoever asks may read it."""

    reason: str
    since_unix_s: float
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must hold: ``holds`` now. ``reason`` tells what it means that it does not."""

    reason: str
    holds: Callable[[], bool]


class Readiness:
    """Looks at its conditions when it is asked, and whenever ``look`` is called in between.

    ``answered_s`` gives when etcd answered last (monotonic); a silence of more than
    ``silence_limit_s`` is a reason that began with that answer.
    """

    def __init__(
        self,
        conditions: tuple[Condition, ...],
        answered_s: Callable[[], float],
        silence_limit_s: float,
    ) -> None:
        self._conditions = conditions
        self._answered_s = answered_s
        self._silence_limit_s = silence_limit_s
        self._since: dict[str, float] = {}

    def look(self) -> None:
        """Note which conditions have just ceased to hold, or hold again."""
        now_s = time.monotonic()
        for condition in self._conditions:
            if condition.holds():
                self._since.pop(condition.reason, None)
            else:
                self._since.setdefault(condition.reason, now_s)

    def reasons(self) -> tuple[Unready, ...]:
        """Why the node is not ready; empty when it is."""
        self.look()
        now_s, now_unix_s = time.monotonic(), time.time()
        since = dict(self._since)
        if now_s - self._answered_s() > self._silence_limit_s:
            since["etcd does not answer"] = self._answered_s()
        return tuple(
            Unready(
                reason=reason,
                since_unix_s=round(now_unix_s - (now_s - began_s), 3),
                for_s=round(now_s - began_s, 3),
            )
            for reason, began_s in since.items()
        )
