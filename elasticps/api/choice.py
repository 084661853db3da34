"""How a user writes down a plugin and its options: ``local-sgd:h=16,outer=sgd``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from elasticps.api.plugins import Contract, known_name, load
from elasticps.errors import UsageError

Value = bool | int | float | str

_KEY = re.compile(r"[a-z][a-z0-9_]*")
_WORDS: Mapping[str, Value] = {"true": True, "false": False}
_MOST = 2**63 - 1  # what a message can carry
_SYNTAX = "NAME or NAME:KEY=VALUE,KEY=VALUE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A plugin's name, and the keyword arguments that its class is made with."""

    name: str
    options: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))


def parse_choice(text: str, what: str) -> Choice:
    """The choice that ``text`` spells; ``what`` is the field that an error names.

    A value is a whole number, a number, ``true`` or ``false`` where it reads as one, else a string.
    Raises UsageError.
    """
    name, colon, rest = text.partition(":")
    if not name or (colon and not rest):
        raise UsageError(f"{text!r} chooses nothing", field=what, limit=_SYNTAX)
    options: dict[str, Value] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        if not (_KEY.fullmatch(key) and equals and value):
            raise UsageError(f"{item!r} in {text!r} is no option", field=what, limit=_SYNTAX)
        if key in options:
            raise UsageError(f"{text!r} gives {key} twice", field=what, limit=_SYNTAX)
        options[key] = _value(value, item, what)
    return Choice(name=name, options=MappingProxyType(options))


def check_choice(group: str, text: str, what: str) -> None:
    """Raise UsageError where ``text`` is no choice, PluginError where no plugin has its name.

    Nothing is imported: whether the options fit, the plugin says when it is made.
    """
    known_name(group, parse_choice(text, what).name, what)


def load_choice(group: str, text: str, contract: type[Contract], what: str) -> Contract:
    """The plugin that ``text`` chooses, made with its options; see ``plugins.load``."""
    choice = parse_choice(text, what)
    return load(group, choice.name, contract, choice.options)


def _value(text: str, item: str, what: str) -> Value:
    if text in _WORDS:
        return _WORDS[text]
    try:
        number = int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text
    if abs(number) > _MOST:
        raise UsageError(f"the number in {item!r}", field=what, limit=f"-{_MOST} to {_MOST}")
    return number
