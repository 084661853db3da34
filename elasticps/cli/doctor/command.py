"""The command: which of a machine and a cluster is looked at, and what its exit code says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from elasticps.cli.daemon import setting_options, settings_of
from elasticps.cli.options import Settings, json_option, run_async
from elasticps.cli.output import print_json
from elasticps.cli.progress import Progress
from elasticps.daemon.sources import DEFAULT
from elasticps.daemon.sources import Settings as DaemonSettings
from elasticps.errors import ElasticError, PeerUnavailable, UsageError

if TYPE_CHECKING:
    from elasticps.doctor.finding import Row

MACHINE, CLUSTER = "machine", "cluster"


@click.command()
@click.option(
    "--only",
    type=click.Choice((MACHINE, CLUSTER)),
    help="Look at this machine alone, or at the running cluster alone.",
)
@setting_options
@json_option
@click.pass_context
def doctor(context: click.Context, /, only: str | None, as_json: bool, **options: Any) -> None:
    """Look for what is wrong, and say what to do about it. Nothing is changed.

    This machine: would its daemon start, and work? It is looked at where it has a configuration, by
    the options of `elasticps daemon`, and needs no daemon. The cluster: what its nodes say, and the
    links between them, for which 16 MiB are sent each way between two nodes. It is looked at where
    the API answers, and takes a token of the role admin where tokens are needed.

    \b
    Example:
      elasticps doctor
      elasticps doctor --only machine --config elasticps.toml
      elasticps --api https://10.0.0.7:7400 doctor --only cluster

    \b
    Exit codes:
      0  no fault; there may be warnings
      1  at least one fault
    """
    given = context.find_root().get_parameter_source("api") is not ParameterSource.DEFAULT
    api: Settings = context.obj
    found: DaemonSettings | UsageError
    try:
        found = settings_of(options)
    except UsageError as error:
        found = error

    async def look() -> list[Row]:
        with Progress() as progress:
            rows: list[Row] = []
            if only == MACHINE or (only is None and (not given or _is_configured(found))):
                rows += await _machine(found, progress.show)
            if only != MACHINE:
                asked = api if given else _own_api(api, found)
                rows += await _cluster(asked, only == CLUSTER or given, progress.show)
            return rows

    rows = run_async(look())
    if as_json:
        print_json({"rows": rows, **_counts(rows)})
    else:
        from elasticps.cli.doctor.table import print_rows

        print_rows(rows)
    if _counts(rows)["faults"]:
        raise click.exceptions.Exit(1)


def _counts(rows: list[Row]) -> dict[str, int]:
    from elasticps.doctor.finding import Level

    def count(level: Level) -> int:
        return sum(row.level is level for row in rows)

    return {
        "ok": count(Level.OK),
        "warnings": count(Level.WARNING),
        "faults": count(Level.FAULT),
        "not_checked": count(Level.UNCHECKED),
    }


def _is_configured(found: DaemonSettings | UsageError) -> bool:
    """Whether anything says what this machine's daemon is; a file that is wrong does."""
    if isinstance(found, UsageError):
        return True
    return any(value.source != DEFAULT for value in found.values.values())


def _own_api(api: Settings, found: DaemonSettings | UsageError) -> Settings:
    """That of this machine's daemon, where its configuration says where it listens."""
    if isinstance(found, UsageError):
        return api
    host, port = cast("tuple[str, int]", found.values["http"].value)
    if not port:
        return api
    ca = found.values["tls.ca"].value
    name = f"[{host}]" if ":" in host else host
    url = f"{'https' if ca else 'http'}://{name}:{port}"
    return replace(api, api=url, ca=api.ca or (ca if isinstance(ca, Path) else None))


async def _machine(found: DaemonSettings | UsageError, tell: Callable[[str], None]) -> list[Row]:
    from elasticps.doctor.finding import refused, rows
    from elasticps.doctor.machine import examine
    from elasticps.doctor.setup import Setup

    if isinstance(found, UsageError):
        return rows("this machine", "configuration", [refused(found)])
    return await examine(Setup(settings=found), tell)


async def _cluster(api: Settings, expected: bool, tell: Callable[[str], None]) -> list[Row]:
    """``expected``: that nobody answers is a fault, and not the way things are before a start."""
    from elasticps.cli.doctor.gather import gather
    from elasticps.doctor.cluster import examine
    from elasticps.doctor.finding import fault, refused, rows, unchecked

    where = f"cluster, by {api.api}"
    try:
        async with api.connect() as client:
            seen = await gather(client, tell)
    except PeerUnavailable as error:
        fix = error.hint or "is its daemon running? --api names another"
        made = fault if expected else unchecked
        return rows(where, "API", [made(error.what, fix=fix)])
    except ElasticError as error:
        return rows(where, "API", [refused(error)])
    return examine(seen)
