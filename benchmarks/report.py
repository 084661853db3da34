"""Tables for people, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Table:
    """Rows of a few words and numbers; the first column is a name."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, name: str, *cells: object) -> None:
        self.rows.append((name, *map(_text, cells)))

    def show(self) -> None:
        """Print it, numbers to the right."""
        whole = [row for row in self.rows if len(row) == len(self.columns)]
        widths = [max(map(len, cells)) for cells in zip(self.columns, *whole, strict=True)]
        widths[0] = max(len(row[0]) for row in (self.columns, *self.rows))
        print(f"\n{self.title}")
        for row in (self.columns, *self.rows):
            cells = [f"{row[0]:{widths[0]}}", *row[1:]]
            if len(row) == len(self.columns):
                cells[1:] = [f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)]
            print("  ".join(cells), flush=True)

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        padded = [row + ("",) * (len(self.columns) - len(row)) for row in lines]
        return "\n".join(f"| {' | '.join(row)} |" for row in padded)


Show = Callable[[Table], None]


def printed(table: Table) -> None:
    table.show()


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
