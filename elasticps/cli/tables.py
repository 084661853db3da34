"""Tables without lines that fit the terminal, in colour on one that wants it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from elasticps.cli.output import printable

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

    Where there is too little room the other columns are folded: nothing is left out.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        is_number = column.endswith(">")
        made.add_column(
            column.rstrip(">"),
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_number,
        )
    return made


def print_rows(rows: Table, instead: str) -> None:
    console().print(rows if rows.row_count else instead)


def cell(text: str) -> Text:
    return Text(printable(text))


def state(name: str) -> Text:
    return Text(printable(name), style=_COLOURS.get(name, ""))
