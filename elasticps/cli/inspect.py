"""Commands that look and change nothing: status, nodes, jobs, logs."""

from __future__ import annotations

import time

import click

from elasticps.cli.answers import Jobs, Nodes
from elasticps.cli.completion import complete_job
from elasticps.cli.lines import is_late, one_rank
from elasticps.cli.options import Settings, age, json_option, require_known, run_async
from elasticps.cli.output import failure_text, print_answer, print_json, print_line
from elasticps.cli.watch import watch_status


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Go on, and show whatever changes.")
@json_option
@click.pass_obj
def status(settings: Settings, watch: bool, as_json: bool) -> None:
    """Show the cluster, its nodes and its jobs.

    LEADS are the blocks that a node serves, HOLDS those that it has a copy of; a star marks the
    leader.

    \b
    Example:
      elasticps status
      elasticps status --watch
      elasticps status --json | jq '.nodes[].state'

    \b
    Exit codes:
      0    shown, whatever the state
      1    the cluster cannot be reached
    """
    if watch:
        watch_status(settings, as_json=as_json)
        return

    async def show() -> None:
        async with settings.connect() as api:
            answer = await api.status()
        print_answer(answer, as_json=as_json)

    run_async(show())


@click.command()
@json_option
@click.pass_obj
def nodes(settings: Settings, as_json: bool) -> None:
    """Show the nodes: their state, and what they hold.

    \b
    Example:
      elasticps nodes
      elasticps nodes --json

    \b
    Exit codes:
      0    shown, whatever their state
      1    the cluster cannot be reached
    """

    async def show() -> None:
        async with settings.connect() as api:
            answer = Nodes(nodes=await api.nodes())
        print_answer(answer, as_json=as_json)

    run_async(show())


@click.command()
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@click.option(
    "--state",
    type=click.Choice(("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"), False),
    help="Only those in this state.",
)
@json_option
@click.pass_obj
def jobs(settings: Settings, active: bool, state: str | None, as_json: bool) -> None:
    """Show the jobs, the oldest first: their state, why, and how far they are.

    \b
    Example:
      elasticps jobs --active
      elasticps jobs --state failed --json | jq '.jobs[].reason'

    \b
    Exit codes:
      0    shown, whatever their state
      1    the cluster cannot be reached
    """

    async def show() -> None:
        async with settings.connect() as api:
            answer = Jobs(jobs=await api.jobs(state=state, active=active))
        print_answer(answer, as_json=as_json)

    run_async(show())


@click.command()
@click.argument("job", shell_complete=complete_job)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of one worker alone: that which has this rank now, or had it last if JOB has ended.",
)
@click.option(
    "--since",
    "since_s",
    type=age,
    metavar="AGE",
    help="Of the last AGE alone, such as 90s, 5m, 2h.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
@click.pass_obj
def logs(
    settings: Settings,
    job: str,
    follow: bool,
    rank: int | None,
    since_s: float | None,
    as_json: bool,
) -> None:
    """Print what the workers of JOB wrote, as "[node] text".

    What they wrote to stderr goes to stderr, and, if the job failed, so does why.

    \b
    Example:
      elasticps logs mnist
      elasticps logs -f mnist --rank 0 2>/dev/null
      elasticps logs mnist --since 5m --json | jq -r .text

    \b
    Exit codes:
      0    the lines that there are were printed; with -f: the job has ended
      1    the cluster cannot be reached, or went away
      2    no such job, no worker of that rank, or no line of it is kept any more
    """

    async def show() -> None:
        async with settings.connect() as api:
            require_known("job", job, await api.job_names())
            begin = 0.0 if since_s is None else time.time() - since_s
            one = None if rank is None else await one_rank(api, job, rank, wait=follow)
            async for line in api.lines(job, follow=follow):
                if (one is not None and not one.has(line)) or not is_late(line, begin):
                    continue
                if as_json:
                    print_json(line, indent=0)
                else:
                    print_line(line)
            failure = None if as_json else (await api.job(job)).failure
            if failure is not None:
                click.echo(failure_text(failure), err=True)
            if one is not None:
                one.check_found()

    run_async(show())
