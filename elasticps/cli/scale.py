"""``elasticps scale``: more or fewer workers for a job that trains."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import click

from elasticps.cli.completion import complete_job
from elasticps.cli.options import (
    MAX_WORKERS,
    Settings,
    json_option,
    require_known,
    run_async,
    waiting_option,
)
from elasticps.cli.output import print_json, printable
from elasticps.cli.progress import Progress
from elasticps.errors import ElasticError

if TYPE_CHECKING:
    from elasticps.cli.answers import Job
    from elasticps.cli.client import Api


@click.command()
@click.argument("job", shell_complete=complete_job)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    required=True,
    metavar="N",
    help="How many workers the job is to have.",
)
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until they are there.")
@waiting_option
@json_option
@click.pass_obj
def scale(
    settings: Settings,
    job: str,
    workers: int,
    no_wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Give JOB N workers from now on, while it trains; at most its --max-workers.

    More begin where nodes have room; where there is none, the job's reason says so, and they begin
    when there is. Fewer: the highest ranks end their round and leave, the main worker last. Nothing
    that was acknowledged is lost.

    \b
    Example:
      elasticps scale mnist --workers 5
      elasticps scale mnist --workers 2 --no-wait

    \b
    Exit codes:
      0    asked for, and there as far as the nodes have room
      1    the cluster cannot be reached, the job ended, or --timeout passed
      2    no such job, or a number that it cannot have
    """

    async def change() -> None:
        async with settings.connect() as api:
            require_known("job", job, await api.job_names())
            answer = await api.scale(job, workers)
            if not no_wait:
                answer = await _settled(api, job, workers, timeout_s)
        if as_json:
            print_json(answer)
        elif no_wait:
            click.echo(f"{job}: asked for")
        else:
            click.echo(printable(f"{job}: {answer.reason}"))

    run_async(change())


async def _settled(api: Api, job: str, workers: int, timeout_s: float | None) -> Job:
    """The job, once it has as many workers as there is room for."""
    from elasticps.cli.client import watch

    heeded = False
    try:
        with Progress() as progress:
            async with (
                asyncio.timeout(timeout_s),
                aclosing(watch(partial(api.job, job))) as looks,
            ):
                async for look in looks:
                    running = sum(worker.state == "running" for worker in look.workers)
                    if look.final:
                        why = f"the job has ended: {look.state}, {look.reason}"
                        raise ElasticError(why, where=job)
                    if look.workers_asked == workers:
                        heeded = True
                        if running == look.workers_planned:
                            return look
                    elif heeded:
                        why = f"{look.workers_asked} workers were asked for meanwhile"
                        raise ElasticError(why, where=job)
                    progress.show(printable(look.reason))
    except TimeoutError:
        raise ElasticError(
            f"not {workers} workers within {timeout_s:g} s",
            where=job,
            field="timeout",
            hint=f"it goes on; `elasticps status` shows what {job} waits for",
        ) from None
    raise AssertionError("unreachable: a watch has no end")
