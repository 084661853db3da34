"""``elasticps wait``: for scripts that go on once the cluster is as they want it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import click

from elasticps.cli.answers import Status
from elasticps.cli.options import Settings, run_async, seconds
from elasticps.cli.output import count
from elasticps.cli.progress import Progress
from elasticps.cli.restart import is_ready, is_whole
from elasticps.errors import ElasticError, UsageError

Missing = Callable[[Status], str]
"""What is not yet as it should be; empty when it is."""
PATIENCE_S = 86_400.0
"""A cluster that does not answer yet is waited for too, by the timeout alone."""


@click.command()
@click.option(
    "--nodes",
    "nodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Until there are exactly N nodes, and all are ready.",
)
@click.option(
    "--copies", is_flag=True, help="Until every job has all its copies, and no block moves."
)
@click.option(
    "--round",
    "rounds",
    multiple=True,
    metavar="JOB=N",
    help="Until JOB has come to round N; repeat it.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=seconds,
    metavar="SECONDS",
    help="Give up after this long, with exit code 1.",
)
@click.pass_obj
def wait(
    settings: Settings,
    nodes: int | None,
    copies: bool,
    rounds: tuple[str, ...],
    timeout_s: float | None,
) -> None:
    """Wait until the cluster is as the options say, all at the same look.

    A cluster that does not answer yet is waited for. The end of a job is what `elasticps logs -f
    JOB` waits for.

    \b
    Example:
      elasticps wait --nodes 3 --timeout 60
      elasticps wait --nodes 2 --copies --round mnist=200

    \b
    Exit codes:
      0    it is so
      1    a job ended before its round, or --timeout passed
      2    nothing to wait for, or not JOB=N
    """
    wanted: list[Missing] = []
    if nodes is not None:
        wanted.append(lambda status: _nodes(status, nodes))
    wanted += [_round(text) for text in rounds]
    if copies:
        wanted.append(_copies)
    if not wanted:
        raise UsageError("nothing is to be waited for", limit="--nodes, --copies or --round")

    async def until_so() -> None:
        from elasticps.cli.client import watch

        missing = "the cluster does not answer"
        try:
            with Progress() as progress:
                progress.show("asking the cluster")
                async with asyncio.timeout(timeout_s), settings.connect() as api:
                    looks = watch(api.status, patience_s=timeout_s or PATIENCE_S)
                    async with aclosing(looks) as statuses:
                        async for status in statuses:
                            missing = "; ".join(filter(None, (each(status) for each in wanted)))
                            if not missing:
                                return
                            progress.show(missing)
        except TimeoutError:
            raise ElasticError(f"not within {timeout_s:g} s: {missing}", field="timeout") from None

    run_async(until_so())


def _nodes(status: Status, wanted: int) -> str:
    ready = sum(map(is_ready, status.nodes))
    if ready == len(status.nodes) == wanted:
        return ""
    return f"{count(len(status.nodes), 'node')}, {ready} ready, not {wanted}"


def _copies(status: Status) -> str:
    return "" if is_whole(status) else "copies are missing, or on their way"


def _round(text: str) -> Missing:
    name, equals, number = text.rpartition("=")
    if not name or not equals or not (number.isascii() and number.isdigit()):
        raise UsageError(f"{text[:80]!r} is not a job's round", field="round", limit="JOB=N")
    wanted = int(number)

    def missing(status: Status) -> str:
        job = next((each for each in status.jobs if each.job == name), None)
        if job is None:
            return f"there is no job {name}"
        at = job.round or 0
        if at >= wanted:
            return ""
        if job.final:
            raise ElasticError(f"{job.state} at round {at}: {job.reason}", where=f"job {name}")
        return f"{name} is at round {at} of {wanted}"

    return missing
