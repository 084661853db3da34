"""Long lists in pages: at most ``limit`` rows, from behind the row that ``after`` names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal, TypeVar

import msgspec

from elasticps.core.records import JobState
from elasticps.daemon.http.contract import Query

MAX_ROWS = 1000

MOST_ENDED = 100
"""Of jobs that have ended, the status shows so many: those that ended last."""

StateName = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
"""Of JobState: a parameter's schema has no room for a named one."""

Row = TypeVar("Row")
Mark = TypeVar("Mark", int, str)

Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS, description="How many rows at most.")]


class JobsQuery(Query, frozen=True):
    limit: Limit = MAX_ROWS
    after: Annotated[
        int, msgspec.Meta(ge=0, le=2**63 - 1, description="The `next` of the page before.")
    ] = 0
    state: Annotated[StateName | None, msgspec.Meta(description="Of jobs in this state alone.")] = (
        None
    )
    active: Annotated[bool, msgspec.Meta(description="Of jobs alone that have not ended.")] = False

    def takes(self, state: JobState) -> bool:
        """Whether a job in that state is asked for."""
        return self.state in (None, state.value) and not (self.active and state.final)


class NodesQuery(Query, frozen=True):
    limit: Limit = MAX_ROWS
    after: Annotated[str, msgspec.Meta(description="The `next` of the page before.")] = ""


def page(
    rows: Iterable[Row], mark: Callable[[Row], Mark], *, after: Mark, limit: int
) -> tuple[list[Row], str | None]:
    """The first ``limit`` of ``rows`` whose mark is beyond ``after``, in the order of their marks.

    With them the mark of the last one, or None where none come after it. A row that goes
    meanwhile, the marked one too, moves no other to another page.
    """
    beyond = sorted((row for row in rows if mark(row) > after), key=mark)
    some = beyond[:limit]
    return some, str(mark(some[-1])) if len(beyond) > len(some) else None


def without_old(rows: Sequence[Row], ended: Callable[[Row], float | None]) -> list[Row]:
    """``rows`` in their order, of those that have ended (when, says ``ended``) the newest alone."""
    ends = [(at, index) for index, row in enumerate(rows) if (at := ended(row)) is not None]
    old = {index for _, index in sorted(ends)[:-MOST_ENDED]}
    return [row for index, row in enumerate(rows) if index not in old]
