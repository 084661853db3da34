"""How several strategies are written down, and what is refused before a job starts."""

from __future__ import annotations

import pytest

from elasticps.api.strategy_choice import (
    PartChoice,
    check_strategy,
    joined,
    names_parameters,
    parse_parts,
)
from elasticps.errors import PluginError, UsageError


def test_parts_are_read_in_their_order() -> None:
    text = "encoder.*=local-sgd:h=4,outer=sgd;  *.weight = all-reduce; *=data-parallel"
    assert names_parameters(text)
    assert parse_parts(text) == (
        PartChoice(pattern="encoder.*", strategy="local-sgd:h=4,outer=sgd"),
        PartChoice(pattern="*.weight", strategy="all-reduce"),
        PartChoice(pattern="*", strategy="data-parallel"),
    )
    check_strategy(text)


@pytest.mark.parametrize("text", ["local-sgd", "local-sgd:h=4", "by-name:parts=*=all-reduce", ""])
def test_one_strategy_for_all_names_no_parameters(text: str) -> None:
    assert not names_parameters(text)


@pytest.mark.parametrize(
    "text",
    [
        "a=data-parallel;",
        "a=data-parallel; all-reduce",
        "=data-parallel",
        "a=",
        "a=local-sgd:h",
        "a=by-name",
        "a=data-parallel; *=auto:approximate=true",
        "a=data-parallel; b:c=data-parallel",
    ],
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_strategy(text)
    assert caught.value.field == "strategy"


def test_a_parts_unknown_strategy_is_named() -> None:
    with pytest.raises(PluginError, match="no plugin named 'telepathy'"):
        check_strategy("a=data-parallel; *=telepathy")


def test_several_options_are_one_text_and_each_is_for_a_pattern() -> None:
    assert joined(("local-sgd:h=4",)) == "local-sgd:h=4"
    assert joined(("a=all-reduce", "*=local-sgd:h=4")) == "a=all-reduce; *=local-sgd:h=4"
    with pytest.raises(UsageError, match="'local-sgd:h=4' is for no pattern"):
        joined(("a=all-reduce", "local-sgd:h=4"))
