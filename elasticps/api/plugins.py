"""Finding and loading plugins. Discovery reads metadata only; importing waits for the selection."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from elasticps.errors import PluginError

OPTIMIZERS = "elasticps.optimizers"
STRATEGIES = "elasticps.strategies"
GROUPS = (OPTIMIZERS, STRATEGIES)

Contract = TypeVar("Contract")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """An installed plugin, not yet imported."""

    group: str
    name: str
    distribution: str
    version: str
    target: str

    @property
    def where(self) -> str:
        return f"plugin {self.name} of {self.distribution} {self.version} ({self.target})"


def discover(group: str) -> tuple[Plugin, ...]:
    """All installed plugins of a group, in name order, without importing any."""
    return tuple(sorted(map(_described, entry_points(group=group)), key=lambda p: p.name))


def _described(entry: EntryPoint) -> Plugin:
    return Plugin(
        group=entry.group,
        name=entry.name,
        distribution=entry.dist.name if entry.dist else "an unknown distribution",
        version=entry.dist.version if entry.dist else "?",
        target=entry.value,
    )


def load(group: str, name: str, contract: type[Contract]) -> Contract:
    """The one plugin ``name`` of ``group``, imported and checked against its contract.

    Raises PluginError, naming distribution, entry point and reason, when there is none or more
    than one, when its import fails, or when it is not a ``contract`` of a known api_version.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        raise _unknown(group, name)
    if len(found) > 1:
        owners = " and ".join(_described(entry).where for entry in found)
        raise PluginError(f"two plugins have this name: {owners}", where=name, field="name")
    plugin = _described(found[0])
    try:
        target = found[0].load()
        made = target() if isinstance(target, type) else target
    except (Exception, SystemExit) as error:  # whatever it raises becomes an error that names it
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"cannot be imported: {reason}", where=plugin.where) from error
    return _checked(made, plugin, contract)


def _unknown(group: str, name: str) -> PluginError:
    names = [plugin.name for plugin in discover(group)]
    near = difflib.get_close_matches(name, names, n=1)
    return PluginError(
        f"no plugin named {name!r} in {group}",
        field="name",
        limit=", ".join(names),
        hint=f"did you mean {near[0]}?" if near else None,
    )


def _checked(made: object, plugin: Plugin, contract: type[Contract]) -> Contract:
    if not isinstance(made, contract):
        raise PluginError(
            f"is a {type(made).__name__}, not a {contract.__name__}", where=plugin.where
        )
    version = getattr(made, "api_version", None)
    known = getattr(contract, "api_version", None)
    if version != known:
        raise PluginError(
            f"was written for version {version} of its contract",
            where=plugin.where,
            field="api_version",
            limit=f"this elasticps knows {known}",
        )
    return made
