"""Bodies and query strings as structs, strictly: what is not exactly asked for is refused.

An error names the field and its limit. Repeated names are refused, for readers differ on which one
counts; so is nesting deeper than anything that is asked for here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from enum import EnumType
from typing import Any, TypeVar

import msgspec

from elasticps.daemon.http.refusals import DOCUMENT_PATH, Refused

Wanted = TypeVar("Wanted", bound=msgspec.Struct)

MAX_DEPTH = 32
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)
_AT = re.compile(r"(?P<what>.*) - at `\$\.(?P<field>\w+).*`", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?P<limit>.*?)(?:, got .*)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")


def from_json(content: bytes, wanted: type[Wanted]) -> Wanted:
    """``content`` as that struct; nothing counts as ``{}``. Raises Refused."""
    content = content or b"{}"
    _check_depth(content)
    try:
        decoded = msgspec.json.decode(content, type=wanted)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _refusal(wanted, str(error)) from None
    _check_repeated(content)
    return decoded


def from_query(pairs: Iterable[tuple[str, str]], wanted: type[Wanted]) -> Wanted:
    """The parameters of a query string as that struct. Raises Refused."""
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise Refused(f"{name} is given twice", field=name, limit="once")
        given[name] = value
    try:
        return msgspec.convert(given, type=wanted, strict=False)
    except msgspec.MsgspecError as error:
        raise _refusal(wanted, str(error)) from None


def _check_depth(content: bytes) -> None:
    """Before anything recurses over it."""
    depth = 0
    for match in _TOKEN.finditer(content):
        token = match[0]
        if token in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Refused(
                    "the body is nested too deeply", field="body", limit=f"{MAX_DEPTH} levels"
                )
        elif token in b"]}":
            depth -= 1


def _check_repeated(content: bytes) -> None:
    def once(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Refused(f"the body says {name[:80]!r} twice", field=name[:80], limit="once")
            seen.add(name)

    try:
        json.loads(
            content.decode(), object_pairs_hook=once, parse_int=str, parse_float=str
        )  # as text: numbers are not of interest, and long ones cost
    except ValueError as error:
        raise Refused(f"the body is no JSON: {error}", field="body") from None


def _refusal(wanted: type[msgspec.Struct], text: str) -> Refused:
    """What msgspec says, with the field and what may be there."""
    kinds = {field.encode_name: field.type for field in msgspec.structs.fields(wanted)}
    if match := _UNKNOWN.fullmatch(text):
        return _unknown(match["field"], sorted(kinds))
    if match := _MISSING.fullmatch(text):
        return Refused(f"{match['field']} is missing", field=match["field"], limit="required")
    if match := _AT.fullmatch(text):
        field, what = match["field"], match["what"]
        kind = kinds.get(field)
        return Refused(f"{field}: {what}", field=field, limit=_limit(kind, what))
    return Refused(
        f"the body is not as it should be: {text}", field="body", limit="one JSON object"
    )


def _unknown(field: str, known: list[str]) -> Refused:
    near = difflib.get_close_matches(field, known, n=1)
    return Refused(
        f"nothing is known of {field[:80]!r} here",
        field=field[:80],
        limit=", ".join(known) or "nothing",
        hint=f"did you mean {near[0]}?" if near else None,
    )


def _limit(kind: Any, what: str) -> str:
    """A field's choices or range where it has one, else what msgspec expected."""
    if isinstance(kind, EnumType):
        choices: Iterable[Any] = kind
        return ", ".join(str(choice.value) for choice in choices)
    told = msgspec.inspect.type_info(kind)
    if isinstance(told, msgspec.inspect.Metadata):
        told = told.type
    for each in told.types if isinstance(told, msgspec.inspect.UnionType) else (told,):
        if isinstance(each, msgspec.inspect.LiteralType):
            return ", ".join(map(str, each.values))
        if isinstance(each, msgspec.inspect.IntType) and None not in (each.ge, each.le):
            return f"{each.ge} to {each.le}"
    match = _EXPECTED.fullmatch(what)
    return match["limit"].replace("`", "") if match else f"see {DOCUMENT_PATH}"
