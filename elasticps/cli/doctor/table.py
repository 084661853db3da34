"""Findings as a table that fits 80 columns: the fix stands below what was seen."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from elasticps.cli.output import count, printable
from elasticps.doctor.finding import Level, Row

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "bold red"}


def print_rows(rows: Sequence[Row]) -> None:
    """To stdout, and the sums last."""
    out = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    for where, group in itertools.groupby(rows, key=lambda row: row.where):
        out.print(Text(printable(where), style="bold"))
        out.print(_table(list(group)))
        out.print()
    levels = [row.level for row in rows]
    out.print(
        f"{count(levels.count(Level.FAULT), 'fault')},"
        f" {count(levels.count(Level.WARNING), 'warning')}, {levels.count(Level.OK)} ok,"
        f" {levels.count(Level.UNCHECKED)} not checked"
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    told = ""
    for row in rows:
        level = Text(row.level.value, style=_STYLES.get(row.level, "dim"))
        table.add_row(level, "" if row.check == told else row.check, Text(printable(row.saw)))
        if row.fix:
            table.add_row("", "", Text(printable(f"-> {row.fix}"), style="italic"))
        told = row.check
    return table
