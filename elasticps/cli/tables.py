"""Tables without lines that fit the terminal, in colour on one that wants it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from elasticps.cli.output import printable

FULL_WIDTH = 80
"""From this width on all columns are shown, whatever is folded for it."""
FOLDED_WIDTH = 12
"""What a column that is folded needs to be read; shorter ones need what they hold."""
GAP = 2

_COLOURS = {
    "ready": "green",
    "RUNNING": "green",
    "SUCCEEDED": "green",
    "draining": "yellow",
    "drained": "yellow",
    "PENDING": "yellow",
    "CANCELLED": "yellow",
    "FAILED": "red",
    "unreachable": "red",
}


def console() -> Console:
    """Of stdout, which takes nothing in a text for markup."""
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False)


def table(*columns: str) -> Table:
    """A column that ends with ">" holds numbers: flush right, and on one line.

    Where there is too little room the other columns are folded; ``fitted`` leaves some out.
    """
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for column in columns:
        is_number = column.endswith(">")
        made.add_column(
            column.rstrip(">"),
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_number,
        )
    return made


def fitted(rows: Table, width: int) -> tuple[Table, list[str]]:
    """``rows`` without the columns that a narrow terminal has no room for, and their names.

    The first two, which say what a row is and how it is, stay, and so does the last, which says
    why; of the others as many as there is room for, from the left. ``rows`` itself is changed.
    """
    if width >= FULL_WIDTH or not rows.row_count:
        return rows, []
    needs = [_needed(column) + GAP for column in rows.columns]
    kept = {0, min(1, len(needs) - 1), len(needs) - 1}
    for number, need in enumerate(needs):
        if number not in kept and sum(needs[each] for each in kept) + need <= width:
            kept.add(number)
    left_out = [str(each.header) for n, each in enumerate(rows.columns) if n not in kept]
    rows.columns = [rows.columns[number] for number in sorted(kept)]
    return rows, left_out


def _needed(column: Column) -> int:
    out = console()
    cells = (column.header, *column.cells)
    natural = max(Measurement.get(out, out.options, each).maximum for each in cells)
    return natural if column.no_wrap else min(natural, FOLDED_WIDTH)


def print_rows(rows: Table, instead: str) -> None:
    """The table, and a line on the columns that are left out; ``instead`` where it has no rows."""
    out = console()
    if not rows.row_count:
        out.print(instead)
        return
    shown, left_out = fitted(rows, out.width)
    out.print(shown)
    if left_out:
        out.print(f"(too narrow for {', '.join(left_out)}; --json has all)")


def cell(text: str) -> Text:
    return Text(printable(text))


def state(name: str) -> Text:
    return Text(printable(name), style=_COLOURS.get(name, ""))
