"""Finding and loading plugins. Discovery reads metadata only; importing waits for the selection."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from elasticps.api.refused import REFUSED
from elasticps.errors import PluginError, UsageError

OPTIMIZERS = "elasticps.optimizers"
STRATEGIES = "elasticps.strategies"
DATA_POLICIES = "elasticps.data_policies"
PLACEMENTS = "elasticps.placements"
CODECS = "elasticps.codecs"
GROUPS = (OPTIMIZERS, STRATEGIES, CODECS, DATA_POLICIES, PLACEMENTS)

Contract = TypeVar("Contract")

_FITS: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "None": (),
}
_SPELLED = {"bool": "true or false", "int": "a whole number", "float": "a number"}


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
    return _discovered(_stamps(), group)


_Stamps = tuple[tuple[str, int], ...]


def _stamps() -> _Stamps:
    """Where packages are looked for, each with when it last changed: so one sees what has been
    installed or removed, without reading the metadata of all packages for every question."""
    return tuple((place, _changed_ns(place)) for place in sys.path)


def _changed_ns(place: str) -> int:
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=len(GROUPS))
def _discovered(stamps: _Stamps, group: str) -> tuple[Plugin, ...]:
    found = map(_described, _entries(stamps, group))
    return tuple(sorted(found, key=lambda plugin: plugin.name))


@lru_cache(maxsize=len(GROUPS))
def _entries(_: _Stamps, group: str) -> EntryPoints:
    return entry_points(group=group)


def _described(entry: EntryPoint) -> Plugin:
    return Plugin(
        group=entry.group,
        name=entry.name,
        distribution=entry.dist.name if entry.dist else "an unknown distribution",
        version=entry.dist.version if entry.dist else "?",
        target=entry.value,
    )


def load(
    group: str,
    name: str,
    contract: type[Contract],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Contract:
    """The one plugin ``name`` of ``group``, imported, made and checked against its contract.

    An entry point that is a class is made with ``options``, its keyword arguments. Raises
    PluginError, naming distribution, entry point and reason, when there is none or more than one,
    when its import or making fails, or when it is not a ``contract`` of a known api_version.
    """
    plugin, target = imported(group, name)
    return _checked(_made(target, options, plugin), plugin, contract)


def imported(group: str, name: str) -> tuple[Plugin, object]:
    """The one plugin ``name`` of ``group`` and what its entry point names; raises as ``load``."""
    known_name(group, name, "name")
    found = list(_entries(_stamps(), group).select(name=name))
    if len(found) > 1:
        owners = " and ".join(_described(entry).where for entry in found)
        raise PluginError(f"two plugins have this name: {owners}", where=name, field="name")
    plugin = _described(found[0])
    try:
        return plugin, found[0].load()
    except (Exception, SystemExit) as error:  # whatever it raises becomes an error that names it
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"cannot be imported: {reason}", where=plugin.where) from error


def known_name(group: str, name: str, what: str) -> None:
    """Raise PluginError, with the nearest name or the reason, where no plugin has this one."""
    names = [plugin.name for plugin in discover(group)]
    if name in names:
        return
    if (group, name) in REFUSED:
        raise PluginError(f"{name} cannot run on servers: {REFUSED[group, name]}", field=what)
    near = difflib.get_close_matches(name, names, n=1)
    raise PluginError(
        f"no plugin named {name!r} in {group}",
        field=what,
        limit=", ".join(names),
        hint=f"did you mean {near[0]}?"
        if near
        else "a plugin has to be installed on every node: `elasticps doctor` compares them",
    )


def _made(target: object, options: Mapping[str, Any], plugin: Plugin) -> object:
    if not isinstance(target, type):
        _refuse_options(options, {}, plugin)
        return target
    parameters = inspect.signature(target).parameters
    _refuse_options(options, parameters, plugin)
    _refuse_types(options, parameters, plugin)
    try:
        return target(**options)
    except PluginError:  # of another plugin that this one has made: it names that
        raise
    except UsageError as error:
        raise PluginError(
            error.what, where=plugin.where, field=error.field, limit=error.limit
        ) from error
    except (Exception, SystemExit) as error:  # as above
        raise PluginError(_said(error), where=plugin.where) from error


def _said(error: BaseException) -> str:
    """A ValueError is how a class refuses its options: a user wants its words, not its name."""
    text = str(error)
    is_refusal = type(error) is ValueError and text
    return text if is_refusal else f"{type(error).__name__}: {text}"


def _refuse_options(
    options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], plugin: Plugin
) -> None:
    """An option that the plugin does not know is named, with those that it does."""
    kinds = {parameter.kind for parameter in parameters.values()}
    unknown = sorted(set(options) - set(parameters))
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise PluginError(
            f"has no option {unknown[0]!r}",
            where=plugin.where,
            field=unknown[0],
            limit=", ".join(parameters) or "it has no options",
        )


def _refuse_types(
    options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], plugin: Plugin
) -> None:
    """An option that its class's annotation wants to be a plain number or bool must be one."""
    for name, value in options.items():
        if name not in parameters:  # one that ``**options`` takes
            continue
        wanted = _words(parameters[name].annotation)
        if not wanted or not wanted <= _FITS.keys() or "str" in wanted:
            continue
        if not any(type(value) in _FITS[word] for word in wanted):
            raise PluginError(
                f"{name} of {value!r}",
                where=plugin.where,
                field=name,
                limit=" or ".join(_SPELLED[word] for word in _SPELLED if word in wanted),
            )


def _words(annotation: object) -> set[str]:
    """The types that an annotation names: ``float | None`` names float and None."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return {word.strip() for word in text.split("|")}


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
