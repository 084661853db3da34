"""The conformance kit: for each group of plugins the cases that every plugin of it must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from elasticps.api.choice import Choice, parse_choice
from elasticps.api.groups import Group, group_of
from elasticps.api.plugins import (
    CODECS,
    DATA_POLICIES,
    OPTIMIZERS,
    PLACEMENTS,
    STRATEGIES,
    Plugin,
    imported,
    load,
)
from elasticps.errors import PluginError

CASES_OF: Mapping[str, str] = {
    OPTIMIZERS: "elasticps.testing.optimizer_cases",
    STRATEGIES: "elasticps.testing.strategy_cases",
    CODECS: "elasticps.testing.codec_cases",
    PLACEMENTS: "elasticps.testing.placement_cases",
    DATA_POLICIES: "elasticps.testing.data_policy_cases",
}
"""Where a group's ``CASES`` are."""


class ContractBroken(PluginError):
    """A plugin does not do what its contract says. ``what`` says which of it, and how."""


def require(kept: object, broken: str) -> None:
    """Raise ContractBroken with ``broken`` where the contract is not kept."""
    if not kept:
        raise ContractBroken(broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The plugin under test, as ``text`` chooses it: its name, and the options it is given."""

    group: Group
    text: str
    choice: Choice

    @property
    def name(self) -> str:
        return self.choice.name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.choice.options)

    def load(self) -> Any:
        """The plugin as elasticps has it when it is chosen; see ``plugins.load``."""
        options = self.options if self.group.made_with_options else {}
        return load(self.group.name, self.name, self.group.load_contract(), options)

    def installed(self) -> Plugin:
        """Its entry, once it is imported."""
        return imported(self.group.name, self.name)[0]

    def check(self, case: Case) -> str:
        """Check one case; returns a line to print, or nothing.

        Raises ContractBroken, naming the distribution, entry point and case, where it fails.
        """
        plugin = self.installed()
        try:
            return case.check(self) or ""
        except ContractBroken as error:
            reason, cause = error.what, error.__cause__
        except Exception as error:  # a plugin under test may raise anything
            if isinstance(error, PluginError) and error.where == plugin.where:
                raise  # it says all there is to say
            reason, cause = f"raised {type(error).__name__}: {error}", error
        raise ContractBroken(f"{case.name}: {reason}", where=plugin.where) from cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One promise of a contract. ``quick``: it takes milliseconds and needs no sockets.

    ``check`` raises ContractBroken, or whatever the plugin raises; what it returns is printed.
    """

    check: Callable[[Subject], str | None]
    quick: bool = False

    @property
    def name(self) -> str:
        return self.check.__name__.replace("_", " ")


def loads_as_its_contract(subject: Subject) -> None:
    """It can be imported and made, is what its group wants, and of a version known here."""
    subject.load()


LOADS = Case(check=loads_as_its_contract, quick=True)


def subject_of(text: str, group: str | None = None) -> Subject:
    """``text`` is ``NAME`` or ``NAME:KEY=VALUE,...``. Raises UsageError or PluginError."""
    choice = parse_choice(text, "name")
    return Subject(group=group_of(choice.name, group), text=text, choice=choice)


def cases_of(group: Group) -> tuple[Case, ...]:
    """All cases of a group, the first of which is that the plugin loads."""
    own: tuple[Case, ...] = import_module(CASES_OF[group.name]).CASES
    return (LOADS, *own)
