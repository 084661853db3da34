"""``elasticps service``: put the systemd service in place, take it away, say how it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from elasticps.cli.output import print_json, printable
from elasticps.daemon.service import (
    FILES,
    UNITS,
    Found,
    Run,
    Step,
    check_python,
    found,
    install_steps,
    uninstall_steps,
)
from elasticps.errors import UsageError

BOOTED = Path("/run/systemd/system")
SHOWN = ("ActiveState", "SubState", "UnitFileState", "StatusText", "NRestarts")

root_option = click.option(
    "--root",
    type=Path,
    default=Path("/"),
    metavar="DIR",
    help="Work on the files below DIR, an image say, and run no commands.",
)
yes_option = click.option("--yes", is_flag=True, help="Do it; without, say what would be done.")
dry_option = click.option("--dry-run", is_flag=True, help="Say what would be done: the default.")


@click.group()
def service() -> None:
    """Install the daemon as a systemd service.

    \b
    Example:
      elasticps service install
      sudo elasticps service install --yes
    """


@service.command()
@root_option
@yes_option
@dry_option
def install(root: Path, yes: bool, dry_run: bool) -> None:
    """Put units, users, folders, the polkit rule and an example configuration in place.

    The service runs the Python that this command runs in. Says what it would do; --yes does it.
    Changed units are replaced (drop-ins stay), a configuration that is there is kept.

    \b
    Example:
      elasticps service install
      sudo elasticps service install --yes
      sudo systemctl enable --now elasticps.target

    \b
    Exit codes:
      0    done; without --yes: said what would be
      1    a step failed
      2    it is not for this user to do
    """
    check_python(sys.executable)
    done = _carry_out(
        install_steps(root.absolute(), sys.executable), root, yes=yes, dry_run=dry_run
    )
    if done and root == Path("/"):
        click.echo(
            "next: edit /etc/elasticps/elasticps.toml, look with `elasticps config show`, then\n"
            "  systemctl enable --now elasticps.target"
        )


@service.command()
@root_option
@yes_option
@dry_option
def uninstall(root: Path, yes: bool, dry_run: bool) -> None:
    """Stop the service, which drains this node, and remove its units, users' and folders' rules.

    The configuration, the state, the logs and the users stay. Says what it would do; --yes does it.

    \b
    Example:
      elasticps service uninstall
      sudo elasticps service uninstall --yes

    \b
    Exit codes:
      0    done; without --yes: said what would be
      1    a step failed
      2    it is not for this user to do
    """
    _carry_out(uninstall_steps(root.absolute()), root, yes=yes, dry_run=dry_run)


def _carry_out(steps: Iterable[Step], root: Path, *, yes: bool, dry_run: bool) -> bool:
    """Show the steps, or do them one after the other; whether they were done."""
    if yes and dry_run:
        raise UsageError("it is one or the other", field="--dry-run", limit="without --yes")
    steps = list(steps)
    if not steps:
        click.echo(f"nothing of elasticps is installed below {root}")
        return False
    for step in steps:
        if not yes:
            click.echo(f"would {step}")
        elif isinstance(step, Run) and step.argv[0] == "systemctl" and not BOOTED.exists():
            click.echo(f"not {step}: systemd does not run here")
        else:
            _do(step)
            click.echo(str(step))
    if not yes:
        click.echo("nothing was changed; --yes does it")
    return yes


def _do(step: Step) -> None:
    try:
        step.do()
    except PermissionError as error:
        raise UsageError(
            f"{error.strerror}: this is root's to do", where=str(error.filename), hint="use sudo"
        ) from None


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    found: str


class UnitState(msgspec.Struct, frozen=True, kw_only=True):
    """A unit as ``systemctl show`` has it."""

    unit: str
    active: str
    sub: str
    enabled: str
    status: str
    restarts: int


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    files: tuple[FileState, ...]
    units: tuple[UnitState, ...]

    @property
    def sound(self) -> bool:
        """All files are in place, and all units that could be asked are active."""
        place = all(file.found not in (Found.MISSING, Found.DIFFERENT) for file in self.files)
        return place and all(unit.active == "active" for unit in self.units)


@service.command()
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(root: Path, as_json: bool) -> None:
    """Say which files are in place and how the units are; exits with 1 if that is not all well.

    \b
    Example:
      elasticps service status

    \b
    Exit codes:
      0    all files are in place and all units active
      1    something is not
    """

    root, cores = root.absolute(), os.cpu_count() or 1
    state = ServiceState(
        files=tuple(
            FileState(
                path=str(root / file.place), found=found(file, root, sys.executable, cores).value
            )
            for file in FILES
        ),
        units=tuple(map(_unit, UNITS)) if root == Path("/") and BOOTED.exists() else (),
    )
    if as_json:
        print_json(state)
    else:
        _print(state)
    if not state.sound:
        raise click.exceptions.Exit(1)


def _unit(name: str) -> UnitState:
    argv = ["systemctl", "show", name, *(f"--property={each}" for each in SHOWN)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return UnitState(
        unit=name,
        active=told.get("ActiveState", "unknown"),
        sub=told.get("SubState", ""),
        enabled=told.get("UnitFileState", "") or "not installed",
        status=told.get("StatusText", ""),
        restarts=int(told.get("NRestarts", "") or 0),
    )


def _print(state: ServiceState) -> None:
    for file in state.files:
        click.echo(f"{file.found:10} {file.path}")
    for unit in state.units:
        more = f": {printable(unit.status)}" if unit.status else ""
        restarts = f", {unit.restarts} restarts" if unit.restarts else ""
        click.echo(f"{unit.active} ({unit.sub}), {unit.enabled}{restarts}  {unit.unit}{more}")
    if not state.units:
        click.echo("systemd was not asked: it does not run here, or this is another root")
