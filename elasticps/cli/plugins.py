"""Commands about the plugins that are installed on this machine; no daemon is asked."""

from __future__ import annotations

from collections import Counter

import click
import msgspec

from elasticps.cli.new_plugin import new_plugin
from elasticps.cli.options import Command, json_option, run_async, seconds
from elasticps.cli.output import print_json
from elasticps.cli.progress import Progress
from elasticps.errors import ElasticError

NAME = "NAME[:KEY=VALUE,...]"


def group_option(command: Command) -> Command:
    return click.option(
        "--group",
        metavar="GROUP",
        help="The group, such as optimizers, where several have a plugin of this name.",
    )(command)


@click.group()
def plugins() -> None:
    """Look at the plugins that are installed on this machine, check them, begin one.

    \b
    Example:
      elasticps plugins list
      elasticps plugins info adamw
      elasticps plugins check lion:lr=0.01
      elasticps plugins new my-optimizer --kind optimizer
    """


plugins.add_command(new_plugin)


@plugins.command("list")
@json_option
def list_plugins(as_json: bool) -> None:
    """List the installed plugins, none of which is imported.

    Two plugins of one group and name are both refused, until one is uninstalled.

    \b
    Example:
      elasticps plugins list
      elasticps plugins list --json

    \b
    Exit codes:
      0    listed, whatever their problems
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


@plugins.command()
@click.argument("name")
@group_option
@json_option
def info(name: str, group: str | None, as_json: bool) -> None:
    """Show one plugin: what it is for, its contract's version, its options with their defaults.

    It is imported, the others are not. The options are those of a job's choice,
    NAME:KEY=VALUE,...; an optimizer's are the arguments of run.optimizer(model, NAME, ...).

    \b
    Example:
      elasticps plugins info adamw
      elasticps plugins info data-parallel --group strategies --json

    \b
    Exit codes:
      0    shown
      2    no such plugin, several groups have one, or it is broken
    """
    from elasticps.api.description import describe
    from elasticps.api.groups import group_of

    found = group_of(name, group)
    seen = describe(found, name)
    row = {
        "group": found.short_name,
        "name": name,
        "distribution": seen.plugin.distribution,
        "version": seen.plugin.version,
        "target": seen.plugin.target,
        "api_version": seen.api_version,
        "known_api_version": getattr(found.load_contract(), "api_version", None),
        "about": seen.about,
        "options": [
            {"name": key, "default": default, "required": default is None}
            for key, default in seen.options.items()
        ],
    }
    if as_json:
        print_json(row)
    else:
        from elasticps.cli import render

        render.print_plugin(row)


@plugins.command()
@click.argument("name", metavar=NAME)
@group_option
@click.option(
    "--timeout",
    "timeout_s",
    type=seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="How long one case may take.",
)
@json_option
def check(name: str, group: str | None, timeout_s: float, as_json: bool) -> None:
    """Check in a process of its own that one plugin keeps its contract.

    These are the quick cases. All of them, for a plugin's own tests:
    pytest -p elasticps.testing --elasticps-plugin NAME

    \b
    Example:
      elasticps plugins check lion
      elasticps plugins check sgd:lr=0.1,momentum=0.9 --json

    \b
    Exit codes:
      0    it keeps its contract
      1    it does not, or is broken
      2    no such plugin, or several groups have one
    """
    from elasticps.api.choice import parse_choice
    from elasticps.api.groups import group_of
    from elasticps.daemon.plugin_check import check_plugin

    wanted = parse_choice(name, "name").name
    found = group_of(wanted, group)
    with Progress() as progress:
        progress.show(f"checking {wanted} ...")
        findings = run_async(check_plugin(found.name, name, limit_s=timeout_s))
    if as_json:
        print_json({"group": found.short_name, "name": wanted, **msgspec.structs.asdict(findings)})
    if findings.reason:
        raise ElasticError(findings.reason)
    if not as_json:
        for case in findings.passed:
            click.echo(f"ok  {case}")
