"""Long lists in pages: at most ``limit`` rows, from behind the row that ``after`` names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

import msgspec

from elasticps.daemon.http.contract import Query

MAX_ROWS = 1000

Row = TypeVar("Row")
Mark = TypeVar("Mark", int, str)

Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS, description="How many rows at most.")]


class JobsQuery(Query, frozen=True):
    limit: Limit = MAX_ROWS
    after: Annotated[
        int, msgspec.Meta(ge=0, le=2**63 - 1, description="The `next` of the page before.")
    ] = 0


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
