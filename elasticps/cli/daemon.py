"""``elasticps daemon`` and ``elasticps config``: the settings of this machine's daemon."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from elasticps.cli.options import Command
from elasticps.cli.output import print_json, printable
from elasticps.daemon.settings import BY_KEY, SETTINGS, Kind, Setting, default_of, to_text
from elasticps.daemon.sources import DEFAULT, FILE, FILE_VARIABLE, Settings, load
from elasticps.starting import loading


def setting_options(command: Command) -> Command:
    """One option a setting, named by its key, and ``--config``."""
    for setting in reversed(SETTINGS):
        command = click.option(
            setting.flag_name,
            _parameter(setting),
            metavar=setting.metavar,
            help=_help(setting),
            **_shape(setting),
        )(command)
    return click.option(
        "--config",
        "file",
        metavar="FILE",
        type=Path,
        help=f"The configuration.  [env: {FILE_VARIABLE}; default: {FILE} if it is there]",
    )(command)


def _parameter(setting: Setting) -> str:
    return setting.key.replace(".", "_")


def _shape(setting: Setting) -> dict[str, Any]:
    match setting.kind:
        case Kind.SWITCH:
            return {"is_flag": True, "default": None}
        case Kind.LABELS:
            return {"multiple": True}
    return {}


def _help(setting: Setting) -> str:
    default = setting.default_text or to_text(setting, default_of(setting))
    notes = f"env: {setting.variable_name}" + (f"; default: {default}" if default else "")
    return f"{setting.help}  [{notes}]"


def settings_of(parameters: Mapping[str, Any]) -> Settings:
    """What the parsed options, the environment and the file say. Raises UsageError."""
    flags = {setting.key: parameters[_parameter(setting)] for setting in SETTINGS}
    return load(flags, os.environ, parameters["file"])


@click.command()
@setting_options
def daemon(**options: Any) -> None:
    """Run this machine's daemon in the foreground, as its systemd unit does.

    Every setting can be given by an option, a variable, or in the configuration, in this order;
    `elasticps config show` says what came from where. SIGHUP loads the configuration anew. The
    folders lie under /var/lib, /var/log and /run for root, else under XDG_STATE_HOME and
    XDG_RUNTIME_DIR.

    Exit code 75: it is to be started again (`elasticps restart`), by its unit; where there is none
    it does so itself. Exit code 3: etcd has lost what it had acknowledged, as after the restore of
    a backup. Stop all daemons, then start them again.

    \b
    Example:
      elasticps daemon --etcd 10.0.0.5:2379,10.0.0.6:2379 --cluster lab
      ELASTICPS_LABELS=zone=a,rack=12 elasticps daemon --workers 2

    \b
    Exit codes:
      0    it has left, and left nothing behind
      1    it left with blocks or workers of jobs still here
      2    a setting is wrong
      3    etcd has lost what it had acknowledged
      75   it is to be started again
    """
    config = settings_of(options).config()
    with loading():
        from elasticps.daemon.departure import RESTART
        from elasticps.daemon.main import run

    managed = "NOTIFY_SOCKET" in os.environ
    code = run(config, lambda: settings_of(options).config())
    if code == RESTART and not managed:  # nobody else would start it again
        os.execv(sys.executable, (sys.executable, *sys.orig_argv[1:]))  # noqa: S606 - no shell
    raise click.exceptions.Exit(code)


@click.group()
def config() -> None:
    """Look at the settings of this machine's daemon.

    \b
    Example:
      elasticps config show
    """


class ShownSetting(msgspec.Struct, frozen=True, kw_only=True):
    """A setting as ``config show --json`` prints it."""

    key: str
    value: str
    source: str
    reload: bool


@config.command()
@setting_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(as_json: bool, **options: Any) -> None:
    """Print each setting and where its value comes from, then check them all.

    Takes the options of `elasticps daemon`, to see what they would make of it.

    \b
    Example:
      elasticps config show
      elasticps config show --config elasticps.toml --workers 2

    \b
    Exit codes:
      0    the settings are good
      2    one of them is not; it is named
    """
    settings = settings_of(options)
    rows = [
        ShownSetting(
            key=key,
            value=to_text(BY_KEY[key], given.value),
            source=given.source,
            reload=BY_KEY[key].reload,
        )
        for key, given in settings.values.items()
    ]
    if as_json:
        print_json(rows)
    else:
        _print_rows(rows, settings.file)
    sys.stdout.flush()  # before an error
    settings.config()


def _print_rows(rows: list[ShownSetting], file: Path | None) -> None:
    click.echo(f"file: {file}" if file else f"file: none ({FILE} is not there)")
    wide = max(len(row.key) for row in rows)
    for row in rows:
        value = printable(row.value) or "-"
        source = "" if row.source == DEFAULT else f"  ({row.source})"
        click.echo(f"{row.key:{wide}}  {value}{source}")
