"""The command that begins a plugin package of one's own, out of the files in ``templates``."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from elasticps.api.groups import group_named
from elasticps.api.plugins import discover
from elasticps.cli.options import json_option
from elasticps.cli.output import print_json
from elasticps.errors import UsageError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SUFFIX = ".tmpl"
COMMON, MODULE = "common", "module"
ENTRY_OF = {"optimizer": "plugin", "strategy": "{cls}", "codec": "{cls}"}
"""The kinds that there are templates of, and what in the module is the plugin."""


@click.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(ENTRY_OF)),
    required=True,
    help="What the plugin is; each has a working example of its kind.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder to make; elasticps-NAME where it is not given.",
)
@json_option
def new_plugin(name: str, kind: str, directory: Path | None, as_json: bool) -> None:
    """Write a small package with one plugin that works, its tests and its entry point.

    \b
    Example:
      elasticps plugins new signum --kind optimizer
      pip install -e elasticps-signum && pytest elasticps-signum

    \b
    Exit codes:
      0    written
      1    a file cannot be written
      2    NAME is none, or the folder is not empty
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a plugin", field="name", limit=NAME.pattern)
    group = group_named(kind)
    for plugin in discover(group.name):
        if plugin.name == name:
            raise UsageError(
                f"{name} is taken by {plugin.where}",
                field="name",
                limit="a new name: two plugins of one name are both refused",
            )
    target = directory or Path(f"elasticps-{name}")
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty", field="directory", limit="a new folder")
    cls = "".join(part.capitalize() for part in name.split("-"))
    words = {
        "name": name,
        "group": group.name,
        "entry": ENTRY_OF[kind].format(cls=cls),
        "distribution": f"elasticps-{name}",
        "module": f"elasticps_{name.replace('-', '_')}",
        "cls": cls,
        "year": time.strftime("%Y"),
    }
    for folder in (COMMON, kind):
        _write(files("elasticps.cli") / "templates" / folder, target, words)
    if as_json:
        print_json({"name": name, "kind": kind, "directory": str(target)})
        return
    click.echo(f"{target}: the {kind} {name}, to be made yours. It works as it is:")
    click.echo(f"  pip install -e {target} && pytest {target}")


def _write(source: Traversable, target: Path, words: Mapping[str, str]) -> None:
    """Copy a folder of templates with ``$name`` and its like filled in, in texts and file names."""
    for item in source.iterdir():
        if item.is_dir():
            place = words["module"] if item.name == MODULE else item.name
            _write(item, target / place, words)
        elif item.name.endswith(SUFFIX):
            target.mkdir(parents=True, exist_ok=True)
            text = string.Template(item.read_text()).substitute(words)
            (target / item.name.removesuffix(SUFFIX)).write_text(text)
