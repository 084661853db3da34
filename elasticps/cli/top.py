"""``elasticps top``: what nodes and jobs do right now, again and again on a terminal."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from elasticps.cli.options import Settings, run_async, seconds
from elasticps.cli.output import count as counted
from elasticps.cli.output import duration, human_bytes, print_json
from elasticps.cli.progress import Progress
from elasticps.cli.rates import JobRates, NodeRates, Rates, rates

if TYPE_CHECKING:
    from rich.console import RenderableType

    from elasticps.cli.client import Api


@click.command()
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="End after N views.  [default: never on a terminal, else 1]",
)
@click.option(
    "--interval",
    "interval_s",
    type=seconds,
    metavar="SECONDS",
    default="1",
    show_default=True,
    help="The time between two views, which rates are over.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a view, on a line.")
@click.pass_obj
def top(settings: Settings, count: int | None, interval_s: float, as_json: bool) -> None:
    """Show what nodes and jobs do right now, until Ctrl-C; where it is piped, once.

    CPU and MEM are shares of the whole machine, LOAD its load average over a minute. IN and OUT are
    the network's bytes a second, DATA what the node's shard server takes and gives, by any way.
    STALE is how many rounds a job's last worker is behind its first. SLOWEST is the worker whose
    script takes longest for its part of a step, beside the median; an exclamation mark is put to a
    straggler.

    \b
    Example:
      elasticps top
      elasticps top --count 1 --json | jq '.jobs[].rounds_per_s'

    \b
    Exit codes:
      0    the views that --count asked for were shown
      1    no daemon answered for 30 seconds, or none at the beginning
      130  it was ended by Ctrl-C
    """
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not as_json
    views = count or (None if sys.stdout.isatty() else 1)

    async def look() -> None:
        async with settings.connect() as api, aclosing(_views(api, interval_s, views)) as seen:
            if live:
                await _show_live(seen)
                return
            async for view in seen:
                if as_json:
                    print_json(view, indent=0)
                else:
                    _print(view)
                sys.stdout.flush()

    run_async(look())


async def _views(api: Api, interval_s: float, views: int | None) -> AsyncGenerator[Rates, None]:
    from elasticps.cli.client import watch

    before, at = await api.status(), time.monotonic()
    with Progress() as progress:
        progress.show(f"measuring for {interval_s:g} s ...")
        await asyncio.sleep(interval_s)
    async with aclosing(watch(api.status, period_s=interval_s)) as looks:
        async for after in looks:
            now = time.monotonic()
            yield rates(before, after, now - at)
            before, at = after, now
            if views is not None:
                views -= 1
                if not views:
                    return


async def _show_live(seen: AsyncIterator[Rates]) -> None:
    from rich.live import Live

    from elasticps.cli.tables import console

    with Live(console=console(), auto_refresh=False, vertical_overflow="crop") as live:
        async for view in seen:
            live.update(_drawn(view), refresh=True)


def _print(view: Rates) -> None:
    from elasticps.cli.tables import console

    console().print(_drawn(view))


def _drawn(view: Rates) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from elasticps.cli import tables

    leader = f"leader {view.leader}" if view.leader else "no leader"
    nodes, jobs = counted(len(view.nodes), "node"), counted(len(view.jobs), "job")
    headline = f"cluster {view.cluster}: {leader}, {nodes}, {jobs}; over {view.over_s:.1f} s"
    by_node = tables.table(
        "NODE", "CPU>", "MEM>", "LOAD>", "LEADS>", "HOLDS>", "IN/s>", "OUT/s>", "DATA/s>"
    )
    for node in view.nodes:
        by_node.add_row(*_node_cells(node))
    by_job = tables.table("JOB", "ROUND>", "ROUND/s>", "WORKERS>", "STALE>", "SLOWEST>", "WHY")
    for job in view.jobs:
        by_job.add_row(*_job_cells(job))
    width = tables.console().width
    by_node, by_job = (tables.fitted(each, width)[0] for each in (by_node, by_job))
    parts: list[RenderableType] = [tables.cell(headline), Text(), by_node, Text()]
    return Group(*parts, by_job if view.jobs else "no jobs that run")


def _node_cells(node: NodeRates) -> list[RenderableType]:
    from elasticps.cli import tables

    name = node.node + (" *" if node.leader else "")
    if node.state != "ready":
        name += f" ({node.state})"
    load = "-" if node.load_1m is None else f"{node.load_1m:.1f}"
    numbers = (_percent(node.cpu), _percent(node.memory), load, str(node.leads), str(node.holds))
    speeds = (node.received_bytes_per_s, node.sent_bytes_per_s, node.data_bytes_per_s)
    return [tables.cell(name), *numbers, *map(_bytes, speeds)]


def _job_cells(job: JobRates) -> list[RenderableType]:
    from rich.text import Text

    from elasticps.cli import tables

    slowest = "-"
    if job.slowest_s is not None and job.median_s is not None:
        slowest = f"{duration(job.slowest_s)} of {duration(job.median_s)}"
    why = job.reason if job.state == "RUNNING" else f"{job.state}: {job.reason}"
    if job.straggles:
        why = f"slowest: {job.slowest}; {why}"
    return [
        tables.cell(job.job),
        "-" if job.round is None else str(job.round),
        f"{job.rounds_per_s:.3g}",
        str(job.workers),
        str(job.staleness),
        Text(slowest + (" !" if job.straggles else ""), style="red" if job.straggles else ""),
        tables.cell(why),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _bytes(speed: float | None) -> str:
    return "-" if speed is None else human_bytes(speed)
