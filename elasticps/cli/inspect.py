"""Commands that look and change nothing: status, nodes, jobs, logs."""

from __future__ import annotations

import click

from elasticps.cli.answers import Jobs, Nodes
from elasticps.cli.options import Settings, json_option, require_known, run_async
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
    """

    async def show() -> None:
        async with settings.connect() as api:
            answer = Nodes(nodes=await api.nodes())
        print_answer(answer, as_json=as_json)

    run_async(show())


@click.command()
@json_option
@click.pass_obj
def jobs(settings: Settings, as_json: bool) -> None:
    """Show the jobs: their state, why, and how far they are.

    \b
    Example:
      elasticps jobs
      elasticps jobs --json | jq '.jobs[] | select(.state == "FAILED")'
    """

    async def show() -> None:
        async with settings.connect() as api:
            answer = Jobs(jobs=(await api.status()).jobs)
        print_answer(answer, as_json=as_json)

    run_async(show())


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
@click.pass_obj
def logs(settings: Settings, job: str, follow: bool, as_json: bool) -> None:
    """Print what the workers of JOB wrote, as "[node] text".

    What they wrote to stderr goes to stderr, and, if the job failed, so does why.

    \b
    Example:
      elasticps logs mnist
      elasticps logs -f mnist 2>/dev/null
    """

    async def show() -> None:
        async with settings.connect() as api:
            known = (await api.status()).jobs
            require_known("job", job, (each.job for each in known))
            async for line in api.lines(job, follow=follow):
                if as_json:
                    print_json(line, indent=0)
                else:
                    print_line(line)
            known = (await api.status()).jobs
            for ended in known if not as_json else ():
                if ended.job == job and ended.failure is not None:
                    click.echo(failure_text(ended.failure), err=True)

    run_async(show())
