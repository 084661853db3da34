"""Commands about the plugins that are installed on this machine; no daemon is asked."""

from __future__ import annotations

from collections import Counter

import click

from elasticps.cli.options import json_option
from elasticps.cli.output import print_json


@click.group()
def plugins() -> None:
    """Look at the plugins that are installed on this machine.

    \b
    Example:
      elasticps plugins list
    """


@plugins.command("list")
@json_option
def list_plugins(as_json: bool) -> None:
    """List the installed plugins, none of which is imported.

    Two plugins of one group and name are both refused, until one is uninstalled.

    \b
    Example:
      elasticps plugins list
      elasticps plugins list --json
    """
    from elasticps.api.plugins import GROUPS, discover

    rows = []
    for group in GROUPS:
        found = discover(group)
        owners = Counter(plugin.name for plugin in found)
        rows += [
            {
                "group": group.removeprefix("elasticps."),
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "target": plugin.target,
                "problem": "two have this name" if owners[plugin.name] > 1 else "",
            }
            for plugin in found
        ]
    if as_json:
        print_json({"plugins": rows})
    else:
        from elasticps.cli import render

        render.print_plugins(rows)
