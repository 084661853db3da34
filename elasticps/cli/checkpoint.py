"""``elasticps checkpoint``: have a job write one now, and what there is as files."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import click

from elasticps.cli.checkpoint_files import export, import_, list_checkpoints
from elasticps.cli.completion import complete_job
from elasticps.cli.options import Settings, json_option, require_known, run_async, waiting_option
from elasticps.cli.output import print_json
from elasticps.cli.progress import Progress
from elasticps.errors import ElasticError

if TYPE_CHECKING:
    from elasticps.cli.answers import Checkpoint
    from elasticps.cli.client import Api


class _Group(click.Group):
    """``checkpoint JOB`` means ``checkpoint save JOB``, for a job with no command's name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_save = args and args[0] not in (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, ["save", *args] if is_save else args)


@click.group(cls=_Group)
def checkpoint() -> None:
    """Have a job write a checkpoint, list what there is, export and import weights.

    `elasticps checkpoint JOB` is `elasticps checkpoint save JOB`.

    \b
    Example:
      elasticps checkpoint save mnist
      elasticps checkpoint list mnist
      elasticps checkpoint export saved mnist.safetensors
    """


checkpoint.add_command(list_checkpoints)
checkpoint.add_command(export)
checkpoint.add_command(import_)


@checkpoint.command()
@click.argument("job", shell_complete=complete_job)
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it is written.")
@waiting_option
@json_option
@click.pass_obj
def save(
    settings: Settings, job: str, no_wait: bool, timeout_s: float | None, as_json: bool
) -> None:
    """Write a checkpoint of JOB after the round under way, and print its directory.

    The job must have a --checkpoint-dir. `elasticps run --resume DIR` goes on from it. Where the
    strategy gives the shards only some rounds, it waits for the next of these, and says so.

    \b
    Example:
      elasticps checkpoint save mnist

    \b
    Exit codes:
      0    it is written, or asked for with --no-wait
      1    it could not be written, the job ended before, or --timeout passed
      2    no such job, or it has no directory for checkpoints
    """

    async def write() -> None:
        async with settings.connect() as api:
            require_known("job", job, await api.job_names())
            asked = await api.checkpoint(job)
            if no_wait:
                print_json(asked) if as_json else click.echo(f"{job}: asked for")
                return
            written = await _written(api, job, asked.request, timeout_s)
        if written.error:
            raise ElasticError(f"no checkpoint: {written.error}", where=job)
        print_json(written) if as_json else click.echo(written.directory)

    run_async(write())


def _awaited(last_round: int | None, waits_for: str) -> str:
    """The workers tell their round: where all are new, nobody has yet."""
    if last_round is None:
        return "waiting for the workers"
    if waits_for:
        return f"round {last_round}: waiting for {waits_for}"
    return f"waiting for the end of round {last_round + 1}"


async def _written(api: Api, job: str, request: int, timeout_s: float | None) -> Checkpoint:
    from elasticps.cli.client import watch

    waits_for = ""
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
                    waits_for = found.waits_for if found is not None else ""
                    progress.show(_awaited(look.round, waits_for))
    except TimeoutError:
        told = f": it waits for {waits_for}" if waits_for else ""
        raise ElasticError(
            f"not written within {timeout_s:g} s{told}",
            where=job,
            field="timeout",
            hint=f"it is still asked for; `elasticps status` shows {job}'s newest",
        ) from None
    raise AssertionError("unreachable: a watch has no end")
