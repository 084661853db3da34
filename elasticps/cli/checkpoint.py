"""The command that makes a job write a checkpoint now."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import click

from elasticps.cli.options import Settings, require_known, run_async, seconds
from elasticps.cli.progress import Progress
from elasticps.errors import ElasticError

if TYPE_CHECKING:
    from elasticps.cli.answers import Checkpoint
    from elasticps.cli.client import Api


@click.command()
@click.argument("job")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it is written.")
@click.option(
    "--timeout",
    "timeout_s",
    type=seconds,
    metavar="SECONDS",
    help="Give up waiting after this long.",
)
@click.pass_obj
def checkpoint(settings: Settings, job: str, no_wait: bool, timeout_s: float | None) -> None:
    """Write a checkpoint of JOB after the round under way, and print its directory.

    The job must have a --checkpoint-dir. `elasticps run --resume DIR` goes on from it.

    \b
    Example:
      elasticps checkpoint mnist
    """

    async def write() -> None:
        async with settings.connect() as api:
            require_known("job", job, (each.job for each in (await api.status()).jobs))
            request = (await api.checkpoint(job)).request
            if no_wait:
                click.echo(f"{job}: asked for")
                return
            written = await _written(api, job, request, timeout_s)
        if written.error:
            raise ElasticError(f"no checkpoint: {written.error}", where=job)
        click.echo(written.directory)

    run_async(write())


async def _written(api: Api, job: str, request: int, timeout_s: float | None) -> Checkpoint:
    from elasticps.cli.client import watch

    try:
        with Progress() as progress:
            async with (
                asyncio.timeout(timeout_s),
                aclosing(watch(partial(api.job, job))) as looks,
            ):
                async for look in looks:
                    found = look.checkpoint
                    if found is not None and found.request >= request:
                        return found
                    if look.final:
                        raise ElasticError(
                            f"the job has ended before: {look.state}, {look.reason}", where=job
                        )
                    progress.show(f"waiting for the end of round {(look.round or 0) + 1}")
    except TimeoutError:
        raise ElasticError(
            f"not written within {timeout_s:g} s",
            where=job,
            field="timeout",
            hint=f"it is still asked for; `elasticps status` shows {job}'s newest",
        ) from None
    raise AssertionError("unreachable: a watch has no end")
