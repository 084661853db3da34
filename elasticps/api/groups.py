"""The table of plugin groups: what one plugin of each is called, and the contract it keeps."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from elasticps.api.plugins import (
    CODECS,
    DATA_POLICIES,
    OPTIMIZERS,
    PLACEMENTS,
    STRATEGIES,
    discover,
)
from elasticps.errors import PluginError, UsageError

PREFIX = "elasticps."


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One entry-point group.

    ``kind`` is what one plugin of it is called. ``contract`` is where its class is, which is
    imported when it is asked for, since it may want torch. ``made_with_options``: the entry point
    is made with the user's options; an optimizer gets them later, with its parameters.
    """

    name: str
    kind: str
    contract: str
    made_with_options: bool = True

    @property
    def short_name(self) -> str:
        return self.name.removeprefix(PREFIX)

    def load_contract(self) -> type[Any]:
        """The contract's class; its ``api_version`` is the version that this elasticps knows."""
        module, _, name = self.contract.partition(":")
        found: type[Any] = getattr(import_module(module), name)
        return found


TABLE = (
    Group(
        name=OPTIMIZERS,
        kind="optimizer",
        contract="elasticps.api.optimizer:Optimizer",
        made_with_options=False,
    ),
    Group(name=STRATEGIES, kind="strategy", contract="elasticps.api.strategy:Strategy"),
    Group(name=CODECS, kind="codec", contract="elasticps.api.codec:Codec"),
    Group(name=DATA_POLICIES, kind="data-policy", contract="elasticps.api.data_policy:DataPolicy"),
    Group(name=PLACEMENTS, kind="placement", contract="elasticps.api.placement:Placement"),
)


def group_named(asked: str) -> Group:
    """The group that ``asked`` means: ``optimizers``, ``optimizer`` or ``elasticps.optimizers``.

    Raises UsageError.
    """
    for group in TABLE:
        if asked in (group.name, group.short_name, group.kind):
            return group
    names = [group.short_name for group in TABLE]
    near = difflib.get_close_matches(asked, names, n=1)
    raise UsageError(
        f"there is no group of plugins {asked!r}",
        field="group",
        limit=", ".join(names),
        hint=f"did you mean {near[0]}?" if near else None,
    )


def group_of(name: str, asked: str | None) -> Group:
    """The group ``asked``, or else the only one that has a plugin ``name``. Imports no plugin.

    Raises UsageError for no such group, PluginError for a name of no group or of several.
    """
    if asked is not None:
        return group_named(asked)
    found = {
        group.name: group
        for group in TABLE
        for plugin in discover(group.name)
        if plugin.name == name
    }
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise PluginError(
            f"plugins of several groups are named {name!r}",
            field="group",
            limit=", ".join(group.short_name for group in found.values()),
        )
    names = sorted({plugin.name for group in TABLE for plugin in discover(group.name)})
    near = difflib.get_close_matches(name, names, n=1)
    raise PluginError(
        f"no plugin named {name!r}",
        field="name",
        limit=", ".join(names),
        hint=f"did you mean {near[0]}?" if near else None,
    )
