"""A plugin and its options, as a user writes them down."""

from __future__ import annotations

import pytest

from elasticps.api.choice import Value, load_choice, parse_choice
from elasticps.api.plugins import OPTIMIZERS, STRATEGIES
from elasticps.api.strategy import Strategy
from elasticps.errors import PluginError, UsageError
from tests.support.distributions import Install, install

__all__ = ["install"]

STRATEGY = """
    from elasticps import Strategy

    class Paced(Strategy):
        def __init__(self, h=1, outer="sgd"):
            if h < 1:
                raise ValueError("h counts steps")
            self.made_with = (h, outer)

        def step(self, worker):
            raise RuntimeError

    class Typed(Paced):
        def __init__(self, h: int = 1, rate: "float | None" = None, eager: bool = False,
                     outer: str = "sgd", odd: "Odd" = None, **more: int):
            self.made_with = (h, rate, eager, outer, odd, more)

    instance = Paced()
"""


def paced(text: str, install: Install) -> Strategy:
    entries = {"paced": "acme:Paced", "typed": "acme:Typed", "made": "acme:instance"}
    install("acme-paced", "acme", STRATEGY, {STRATEGIES: entries})
    return load_choice(STRATEGIES, text, Strategy, "strategy")  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("data-parallel", "data-parallel", {}),
        ("local-sgd:h=16", "local-sgd", {"h": 16}),
        ("x:a=0.5,b=1e-3", "x", {"a": 0.5, "b": 1e-3}),
        ("x:a=true,b=false,c=True", "x", {"a": True, "b": False, "c": "True"}),
        ("x:outer=sgd,of=a=b,at=h:p", "x", {"outer": "sgd", "of": "a=b", "at": "h:p"}),
    ],
)
def test_choice_is_a_name_and_typed_options(
    text: str, name: str, options: dict[str, Value]
) -> None:
    choice = parse_choice(text, "strategy")
    assert (choice.name, dict(choice.options)) == (name, options)
    assert [type(item) for item in choice.options.values()] == [type(v) for v in options.values()]


@pytest.mark.parametrize("text", ["", ":h=1", "x:", "x:h", "x:h=", "x:=1", "x:h=1,", "x:H=1"])
def test_what_spells_no_choice_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_choice(text, "strategy")
    assert caught.value.field == "strategy"


def test_option_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="gives h twice"):
        parse_choice("x:h=1,h=2", "codec")


def test_plugin_is_made_with_its_options(install: Install) -> None:
    assert vars(paced("paced:h=4", install)) == {"made_with": (4, "sgd")}


def test_options_of_the_annotated_types_are_taken(install: Install) -> None:
    made = paced("typed:h=4,rate=1,eager=true,outer=2,odd=x,extra=0.5", install)
    assert vars(made) == {"made_with": (4, 1, True, 2, "x", {"extra": 0.5})}


@pytest.mark.parametrize("number", [2**63, -(2**63), 10**400])
def test_number_that_no_message_can_carry_is_refused(number: int) -> None:
    with pytest.raises(UsageError, match="the number in 'h=") as caught:
        parse_choice(f"x:h={number}", "strategy")
    assert caught.value.field == "strategy"


@pytest.mark.parametrize(
    ("text", "reason", "field", "limit"),
    [
        ("paced:pace=4", "has no option 'pace'", "pace", "h, outer"),
        ("made:h=4", "has no option 'h'", "h", "it has no options"),
        ("typed:h=much", "h of 'much'", "h", "a whole number"),
        ("typed:h=2.0", "h of 2.0", "h", "a whole number"),
        ("typed:h=true", "h of True", "h", "a whole number"),
        ("typed:rate=true", "rate of True", "rate", "a number"),
        ("typed:eager=1", "eager of 1", "eager", "true or false"),
        ("paced:h=0", "h counts steps", None, None),
        ("paced:h=much", "TypeError: '<' not supported", None, None),
    ],
)
def test_option_that_does_not_fit_is_told_with_the_plugin(
    install: Install, text: str, reason: str, field: str | None, limit: str | None
) -> None:
    with pytest.raises(PluginError) as caught:
        paced(text, install)
    error = caught.value
    assert error.what.startswith(reason)
    assert (error.field, error.limit) == (field, limit)
    assert error.where is not None
    assert "acme-paced 1.0" in error.where


def test_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(PluginError) as caught:
        load_choice(OPTIMIZERS, "adamm", object, "optimizer")
    assert caught.value.field == "name"
    assert caught.value.hint == "did you mean adam?"
