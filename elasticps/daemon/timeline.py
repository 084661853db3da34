"""The timeline that one daemon keeps: what it has seen happen, in order, since it started."""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from collections.abc import Callable

import msgspec

from elasticps.core.ids import JobName, NodeId
from elasticps.daemon.changes import NOBODY, Change, FoundDead, changes
from elasticps.daemon.picture import Picture, take
from elasticps.daemon.view import ClusterView
from elasticps.errors import UsageError

KEPT = 10_000
EVENT_ID = re.compile(r"(?P<life>[0-9a-f]{8})-(?P<sequence>\d{1,15})")


class Event(Change, frozen=True, kw_only=True):
    """A change, when this daemon saw it, and its place in this daemon's timeline."""

    id: str
    unix_s: float


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """``next`` is what to ask for what comes after. ``missed``: there may have been more before
    these that are not kept, or were seen by another life of a daemon.
    """

    events: tuple[Event, ...]
    next: str
    missed: bool = False


class Timeline:
    """A bounded ring of events. Their ids begin with this life of the daemon, so that those of
    another daemon, or of before a restart, are recognised.

    ``picture`` is the view as it was looked at last.
    """

    def __init__(
        self,
        view: ClusterView,
        found_dead: FoundDead = NOBODY,
        *,
        kept: int = KEPT,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.picture = Picture()
        self._view = view
        self._found_dead = found_dead
        self._now = now
        self._life = secrets.token_hex(4)
        self._events: deque[Event] = deque(maxlen=kept)
        self._sequence = 0
        self._listeners: set[Callable[[Event], None]] = set()

    def look(self) -> None:
        """Note what has changed since the last look; the first one finds all as it is."""
        before, self.picture = self.picture, take(self._view, self.picture)
        if not before.revision:
            return
        for change in changes(before, self.picture, self._found_dead):
            self._sequence += 1
            event = Event(
                **msgspec.structs.asdict(change), id=self.newest, unix_s=round(self._now(), 3)
            )
            self._events.append(event)
            for listener in tuple(self._listeners):
                listener(event)

    @property
    def newest(self) -> str:
        """The id of the last event; of none, if none has been."""
        return f"{self._life}-{self._sequence}"

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Each event from now on goes to ``listener``, until what is returned is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def page(
        self,
        after: str | None = None,
        *,
        limit: int = KEPT,
        job: JobName | None = None,
        node: NodeId | None = None,
    ) -> EventPage:
        """The events after one, oldest first, at most ``limit``; without ``after``, the newest.

        Those of a ``job`` are none of an earlier one of its name, while there is a job of it. An
        ``after`` of another life counts as one before all that is kept. Raises UsageError for
        what is no id.
        """

        present = self.picture.jobs.get(job) if job is not None else None

        def wanted(event: Event) -> bool:
            if present is not None and event.job_key != present.key:
                return False
            return (job is None or event.job == job) and (node is None or event.node == node)

        if after is None:
            matching = [event for event in self._events if wanted(event)]
            return EventPage(
                events=tuple(matching[-limit:]),
                next=self.newest,
                missed=len(matching) > limit or self._dropped > 0,
            )
        seen, missed = self._seen(after)
        found = []
        for event in self._after(seen):
            if wanted(event):
                found.append(event)
            if len(found) == limit:
                return EventPage(events=tuple(found), next=event.id, missed=missed)
        return EventPage(events=tuple(found), next=self.newest, missed=missed)

    @property
    def _dropped(self) -> int:
        return self._sequence - len(self._events)

    def _seen(self, after: str) -> tuple[int, bool]:
        """How many events its reader has seen, and whether it may miss some between."""
        match = EVENT_ID.fullmatch(after)
        if match is None:
            raise UsageError(
                f"{after!r} is no event's id",
                field="after",
                limit="an id or a `next` that a daemon gave",
            )
        seen = int(match["sequence"])
        if match["life"] != self._life or seen > self._sequence:
            return self._dropped, True
        return max(seen, self._dropped), seen < self._dropped

    def _after(self, seen: int) -> list[Event]:
        count = self._sequence - seen
        return list(self._events)[len(self._events) - count :]
