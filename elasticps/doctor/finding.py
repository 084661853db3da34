"""What a check has found: how bad it is, what was seen, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from elasticps.errors import ElasticError


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    UNCHECKED = "not checked"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """``fix`` says what to do; for what is not checked, how it can be."""

    level: Level
    saw: str
    fix: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A finding, the check that made it, and the machine or cluster that it is about."""

    where: str
    check: str
    level: Level
    saw: str
    fix: str = ""


def ok(saw: str) -> Finding:
    return Finding(level=Level.OK, saw=saw)


def warning(saw: str, *, fix: str) -> Finding:
    return Finding(level=Level.WARNING, saw=saw, fix=fix)


def fault(saw: str, *, fix: str) -> Finding:
    return Finding(level=Level.FAULT, saw=saw, fix=fix)


def unchecked(why: str, *, fix: str = "") -> Finding:
    return Finding(level=Level.UNCHECKED, saw=why, fix=fix)


def refused(error: ElasticError, fix: str = "") -> Finding:
    """A fault in the error's own words, and with its own hint where it has one."""
    text = f"{error.where}: {error.what}" if error.where else error.what
    if error.field:
        text += f" (field {error.field})"
    if error.limit:
        text += f" (limit: {error.limit})"
    return fault(text, fix=error.hint or fix or "docs/configuration.md says what it takes")


def rows(where: str, check: str, findings: Iterable[Finding]) -> list[Row]:
    return [
        Row(where=where, check=check, level=each.level, saw=each.saw, fix=each.fix)
        for each in findings
    ]


def size(nbytes: float) -> str:
    """``24 KiB``, ``2.0 GiB``."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes:.0f} B"
