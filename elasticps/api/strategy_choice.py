"""How a user writes down a job's strategy: one for all, or several by the parameters' names.

``local-sgd:h=8`` is one for all; ``encoder.*=all-reduce; *=data-parallel`` are two.
"""

from __future__ import annotations

from dataclasses import dataclass

from elasticps.api.choice import check_choice, load_choice, parse_choice
from elasticps.api.plugins import STRATEGIES, load
from elasticps.api.strategy import Strategy
from elasticps.errors import UsageError

BY_NAME = "by-name"
FOR_ALL = (BY_NAME, "auto")
"""Strategies of a whole model: none of them can have a part of it."""
SEPARATOR = ";"
_SYNTAX = "PATTERN=STRATEGY; PATTERN=STRATEGY; ..."


@dataclass(frozen=True, slots=True, kw_only=True)
class PartChoice:
    """The parameters whose names match ``pattern``, as fnmatch has it, go by ``strategy``."""

    pattern: str
    strategy: str


def names_parameters(text: str) -> bool:
    """Does ``text`` choose by the parameters' names? An option's ``=`` comes after a colon."""
    return "=" in text.partition(SEPARATOR)[0].partition(":")[0]


def parse_parts(text: str) -> tuple[PartChoice, ...]:
    """The parts that ``text`` spells, in their order. Raises UsageError, with the field strategy.

    Nothing is imported, and whether a plugin has a name is not looked at.
    """
    return tuple(_part(item.strip()) for item in text.split(SEPARATOR))


def _part(text: str) -> PartChoice:
    pattern, equals, strategy = (item.strip() for item in text.partition("="))
    if not (pattern and equals and strategy) or ":" in pattern:
        raise UsageError(
            f"{text!r} gives no strategy to a pattern", field="strategy", limit=_SYNTAX
        )
    name = parse_choice(strategy, "strategy").name
    if name in FOR_ALL:
        raise UsageError(
            f"{name} as the strategy of {pattern}", field="strategy", limit="any other strategy"
        )
    return PartChoice(pattern=pattern, strategy=strategy)


def joined(texts: tuple[str, ...]) -> str:
    """Several texts, each for a pattern, as the one that says the same. Raises UsageError."""
    for text in texts if len(texts) > 1 else ():
        if not names_parameters(text):
            raise UsageError(
                f"{text!r} is for no pattern, and there are several strategies",
                field="strategy",
                limit="PATTERN=STRATEGY, for each of several",
            )
    return f"{SEPARATOR} ".join(texts)


def check_strategy(text: str) -> None:
    """Raise UsageError where ``text`` is no choice, PluginError where a name is not installed."""
    if names_parameters(text):
        for part in parse_parts(text):
            check_choice(STRATEGIES, part.strategy, "strategy")
    else:
        check_choice(STRATEGIES, text, "strategy")


def load_strategy(text: str) -> Strategy:
    """The strategy that ``text`` chooses; raises as ``plugins.load`` and ``parse_parts`` do."""
    if names_parameters(text):
        return load(STRATEGIES, BY_NAME, Strategy, {"parts": text})  # type: ignore[type-abstract]
    return load_choice(STRATEGIES, text, Strategy, "strategy")  # type: ignore[type-abstract]
