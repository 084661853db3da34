"""What a process that tries a plugin says on its standard output, to the one that started it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

MAX_REASON = 4000


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of JSON: a case ``begins``, the plugin is ``broken``, or it has ``passed`` all."""

    begins: str = ""
    broken: str = ""
    passed: bool = False


@contextmanager
def telling() -> Iterator[Callable[[Row], None]]:
    """Give a function that says a row; what the plugin itself prints goes to standard error."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)
        yield lambda row: _write(out.fileno(), row)


def _write(descriptor: int, row: Row) -> None:
    row = msgspec.structs.replace(row, broken=row.broken[:MAX_REASON])
    os.write(descriptor, msgspec.json.encode(row) + b"\n")
