"""What one installed plugin says of itself: its contract's version, its purpose, its options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from elasticps.api.groups import Group
from elasticps.api.plugins import Plugin, imported
from elasticps.errors import PluginError

_NOT_OPTIONS = ("self", "params")
"""``params`` is what a ``torch.optim`` class calls the tensors that it updates."""
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """``options`` has each option's default as Python spells it, None where it must be given.

    ``api_version`` is the contract's version that the plugin was written for, None where it says
    none; ``about`` is the first paragraph of its docstring.
    """

    plugin: Plugin
    api_version: int | None
    about: str
    options: Mapping[str, str | None]


def describe(group: Group, name: str) -> Description:
    """Import the plugin ``name`` and look at it; nothing is made. Raises as ``plugins.load``."""
    plugin, target = imported(group.name, name)
    contract = group.load_contract()
    fits = (
        issubclass(target, contract) if isinstance(target, type) else isinstance(target, contract)
    )
    if not fits:
        raise PluginError(f"is not a {contract.__name__}", where=plugin.where)
    version = getattr(target, "api_version", None)
    subject = target if group.made_with_options else getattr(target, "cls", None)
    return Description(
        plugin=plugin,
        api_version=version if isinstance(version, int) else None,
        about=_first_paragraph(inspect.getdoc(subject or target) or ""),
        options=_options(subject),
    )


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _options(subject: object) -> dict[str, str | None]:
    if not isinstance(subject, type):
        return {}
    try:
        parameters = inspect.signature(subject).parameters
    except (TypeError, ValueError):  # a class made in C shows none
        return {}
    return {
        key: None if item.default is item.empty else repr(item.default)
        for key, item in parameters.items()
        if key not in _NOT_OPTIONS and item.kind not in _STARRED
    }
