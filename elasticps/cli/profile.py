"""``elasticps profile``: where the time of a job's steps goes, as a table and as a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from elasticps.cli.completion import complete_job
from elasticps.cli.options import Settings, json_option, require_known, run_async
from elasticps.cli.output import print_json, printable
from elasticps.cli.progress import Progress
from elasticps.core.spans import MAX_STEPS, MAX_WAIT_S
from elasticps.errors import UsageError

if TYPE_CHECKING:
    from elasticps.core.step_profile import StepProfile

WAIT_S = 60


@click.command()
@click.argument("job", shell_complete=complete_job)
@click.option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    default=5,
    show_default=True,
    help="How many steps of each worker to record.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the trace here, for ui.perfetto.dev or chrome://tracing.",
)
@click.option(
    "--timeout",
    "wait_s",
    type=click.IntRange(1, int(MAX_WAIT_S)),
    default=WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="Take what there is after this long.",
)
@json_option
@click.pass_obj
def profile(
    settings: Settings, job: str, steps: int, out: Path | None, wait_s: int, as_json: bool
) -> None:
    """Record some steps of JOB while it trains, in all its workers and shard servers.

    Prints where a step's time goes and what bounds it. Recording costs some microseconds a block;
    nothing is recorded at other times.

    \b
    Example:
      elasticps profile mnist
      elasticps profile mnist --steps 20 --out trace.json

    \b
    Exit codes:
      0    recorded
      1    the cluster cannot be reached, or no worker ended a step in the time
      2    no such job, it trains no more, or FILE cannot be written
    """

    async def record() -> bool:
        async with settings.connect() as api:
            require_known("job", job, await api.job_names())
            with Progress() as progress:
                progress.show(f"recording {steps} steps of {printable(job)}")
                trace, document = await api.profile(job, steps=steps, wait_s=wait_s)
        if out is not None:
            _write(out, document)
        if as_json:
            print_json(trace.profile)
        else:
            _print(trace.profile, trace.missing)
            if out is not None:
                click.echo(f"{out}: open it at https://ui.perfetto.dev")
        return trace.profile.steps > 0

    if not run_async(record()):
        raise SystemExit(1)


def _write(out: Path, document: bytes) -> None:
    try:
        out.write_bytes(document)
    except OSError as error:
        raise UsageError(
            f"the trace cannot be written: {error.strerror}", where=str(out), field="out"
        ) from None


def _print(profile: StepProfile, missing: dict[str, str]) -> None:
    from elasticps.cli.tables import cell, print_rows, table

    columns = ("STEP", "FORWARD", "BACKWARD", "SCRIPT", "OTHERS", "PUSH", "VOTE", "PULL", "REST")
    rows = table("WORKER", "RANK>", *(f"{column}>" for column in columns))
    for each in sorted(profile.workers, key=lambda each: each.rank):
        seconds = (
            each.step_s,
            each.forward_s,
            each.backward_s,
            each.script_s,
            each.others_s,
            each.push_s,
            each.vote_s,
            each.pull_s,
            each.rest_s,
        )
        rows.add_row(cell(each.worker), str(each.rank), *(f"{1e3 * item:.1f}" for item in seconds))
    print_rows(rows, "no step was recorded")
    if profile.servers:
        click.echo("")
        rows = table("SERVER", "STAGE>", "APPLY>", "REPLICATE>")
        for server in profile.servers:
            busy = (server.stage_s, server.apply_s, server.replicate_s)
            rows.add_row(
                cell(f"{server.node} {server.name}"), *(f"{1e3 * item:.1f}" for item in busy)
            )
        print_rows(rows, "")
    click.echo(
        f"\nmilliseconds a step, the mean of {profile.steps}; clocks agree within ", nl=False
    )
    click.echo(f"{1e3 * profile.clock_error_s:.2f} ms")
    if profile.left_out:
        click.echo(f"{profile.left_out} older spans had no room: ask for fewer steps")
    for node, why in sorted(missing.items()):
        click.echo(printable(f"{node} is missing: {why}"))
    click.echo(printable(profile.advice))
