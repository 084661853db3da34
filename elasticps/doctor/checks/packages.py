"""Is what is installed new enough, and can each plugin of others be imported?"""

from __future__ import annotations

import asyncio
import re
from collections import Counter

from elasticps.api.plugins import GROUPS, Plugin, discover, imported
from elasticps.daemon.machine_facts import MachineFacts
from elasticps.doctor.finding import Finding, fault, ok, warning
from elasticps.doctor.setup import Setup
from elasticps.errors import PluginError

TORCH = (2, 6)


def packages(facts: MachineFacts) -> list[Finding]:
    saw = f"elasticps {facts.elasticps}, Python {facts.python}, torch {facts.torch or 'absent'}"
    version = tuple(int(part) for part in re.findall(r"\d+", facts.torch)[:2])
    if version < TORCH:
        return [fault(saw, fix="pip install 'torch>=2.6' in the environment of elasticps")]
    return [ok(saw)]


async def plugins(_: Setup) -> list[Finding]:
    """Those of other distributions are imported, for that is what a job that chose one would do."""
    found = [plugin for group in GROUPS for plugin in discover(group)]
    names = Counter((plugin.group, plugin.name) for plugin in found)
    twice = [key for key, count in names.items() if count > 1]
    findings = [
        warning(
            f"{group.removeprefix('elasticps.')}/{name}: two have this name, neither can be chosen",
            fix="uninstall one: `elasticps plugins list` names the distributions",
        )
        for group, name in twice
    ]
    others = [
        plugin
        for plugin in found
        if plugin.distribution != "elasticps" and (plugin.group, plugin.name) not in twice
    ]
    broken = await asyncio.to_thread(lambda: [each for each in map(_trouble, others) if each])
    return [*findings, *broken] or [ok(f"{len(found)} are installed, {len(others)} of others")]


def _trouble(plugin: Plugin) -> Finding | None:
    try:
        imported(plugin.group, plugin.name)
    except PluginError as error:
        fix = f"`elasticps plugins check {plugin.name}`, or pip uninstall {plugin.distribution}"
        return warning(f"{plugin.where}: {error.what}", fix=fix)
    return None
