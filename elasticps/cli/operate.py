"""Commands that change the cluster: drain, undrain, rebalance, submit, cancel, forget."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elasticps.cli.answers import Forgotten, ForgottenJobs, Node, NodeState, Submission
from elasticps.cli.completion import complete_ended_job, complete_job, complete_node
from elasticps.cli.options import (
    MAX_WORKERS,
    Settings,
    check_job,
    job_options,
    json_option,
    require_known,
    run_async,
    script_argument,
    waiting_option,
)
from elasticps.cli.output import count, print_answer, print_json, printable
from elasticps.cli.progress import Progress
from elasticps.cli.trial import decided, is_auto
from elasticps.errors import ElasticError

if TYPE_CHECKING:
    from elasticps.cli.client import Api

GONE = "gone"
"""The API's word for a node that is not registered."""


@click.command()
@click.argument("node", shell_complete=complete_node)
@click.option("--stay", is_flag=True, help="The daemon stays in the cluster, holding nothing.")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until the node is empty.")
@waiting_option
@json_option
@click.pass_obj
def drain(
    settings: Settings,
    node: str,
    stay: bool,
    no_wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Move everything off NODE, then let it leave.

    Training goes on meanwhile. The drain itself goes on when the waiting ends early; `elasticps
    undrain` takes it back.

    \b
    Example:
      elasticps drain machine-b
      elasticps drain --stay --timeout 300 machine-b

    \b
    Exit codes:
      0    NODE is empty, or has left; with --no-wait: asked for
      1    the cluster cannot be reached, or --timeout passed: the drain goes on
      2    no such node
    """

    async def move_away() -> None:
        async with settings.connect() as api:
            require_known("node", node, (each.node for each in await api.nodes()))
            answer = await api.drain(node, stay=stay)
            state = answer.state if no_wait else await _drained(api, node, timeout_s)
        _tell(node, state, as_json=as_json)

    run_async(move_away())


def _tell(node: str, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json(NodeState(node=node, state=state))
    else:
        click.echo(f"{node}: {'left the cluster' if state == GONE else state}")


async def _drained(api: Api, node: str, timeout_s: float | None) -> str:
    """The node's state once it holds nothing; ``gone`` when it has left."""
    from elasticps.cli.client import watch

    last: Node | None = None
    try:
        with Progress() as progress:
            async with asyncio.timeout(timeout_s), aclosing(watch(api.nodes)) as looks:
                async for nodes in looks:
                    last = next((each for each in nodes if each.node == node), None)
                    if last is None or (last.state == "drained" and last.idle):
                        break
                    progress.show(f"draining {node}: {_load(last)} left")
    except TimeoutError:
        raise ElasticError(
            f"not drained within {timeout_s:g} s" + (f", {_load(last)} left" if last else ""),
            where=node,
            field="timeout",
            hint=f"the drain goes on; `elasticps undrain {node}` takes it back",
        ) from None
    return GONE if last is None else last.state


def _load(node: Node) -> str:
    return f"{count(node.replicas, 'block')}, {count(len(node.workers), 'worker')}"


@click.command()
@click.argument("node", shell_complete=complete_node)
@json_option
@click.pass_obj
def undrain(settings: Settings, node: str, as_json: bool) -> None:
    """Take a drain of NODE back: it may hold blocks and run workers again.

    \b
    Example:
      elasticps undrain machine-b

    \b
    Exit codes:
      0    taken back
      1    the cluster cannot be reached
      2    no such node
    """

    async def welcome_back() -> None:
        async with settings.connect() as api:
            require_known("node", node, (each.node for each in await api.nodes()))
            answer = await api.undrain(node)
        _tell(node, answer.state, as_json=as_json)

    run_async(welcome_back())


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the moves and their bytes, and start none.")
@json_option
@click.pass_obj
def rebalance(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Spread the blocks over the nodes anew, by the fewest bytes, while training goes on.

    \b
    Example:
      elasticps rebalance --dry-run
      elasticps rebalance

    \b
    Exit codes:
      0    asked for; with --dry-run: printed
      1    the cluster cannot be reached
    """

    async def spread() -> None:
        async with settings.connect() as api:
            answer = await (api.moves() if dry_run else api.rebalance())
        print_answer(answer, as_json=as_json)

    run_async(spread())


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--name", help="The job's name; the cluster makes one up without it.")
@click.option(
    "--start-workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=1,
    show_default=True,
    help="Start training with this many workers.",
)
@click.option(
    "--max-workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=MAX_WORKERS,
    show_default=True,
    help="Never run more workers than this.",
)
@click.option(
    "--env", "pairs", multiple=True, metavar="KEY=VALUE", help="A variable for the workers; repeat."
)
@job_options
@json_option
@script_argument
@click.pass_obj
def submit(
    settings: Settings,
    /,
    script: Path,
    args: tuple[str, ...],
    pairs: tuple[str, ...],
    as_json: bool,
    **job: Any,
) -> None:
    """Train SCRIPT with its ARGS on the cluster, and return at once.

    The script must lie at the same path on every machine. Everything behind SCRIPT is the script's.

    \b
    Example:
      elasticps submit --start-workers 4 train.py --epochs 10
      elasticps submit --env OMP_NUM_THREADS=4 train.py

    \b
    Exit codes:
      0    the cluster has the job
      1    the cluster cannot be reached, or a trial of `auto` failed
      2    something about the job is refused, by name
    """
    if job["max_workers"] < job["start_workers"]:
        raise click.BadParameter(
            f"{job['max_workers']} are fewer than the {job['start_workers']} to start with",
            param_hint="'--max-workers'",
        )
    submission = Submission(
        argv=(str(script.absolute()), *args), cwd=str(Path.cwd()), env=_variables(pairs), **job
    )
    check_job(submission)
    is_auto(submission)

    async def hand_in() -> None:
        async with settings.connect() as api:
            with Progress() as progress:
                answer = await api.submit(await decided(api, submission, progress))
        if as_json:
            print_json(answer)
        else:
            click.echo(f"submitted {answer.job}; `elasticps logs -f {answer.job}` follows it")

    run_async(hand_in())


def _variables(pairs: tuple[str, ...]) -> dict[str, str]:
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or "\0" in pair:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="'--env'")
        variables[name] = value
    return variables


@click.command()
@click.argument("job", shell_complete=complete_job)
@json_option
@click.pass_obj
def cancel(settings: Settings, job: str, as_json: bool) -> None:
    """Stop JOB's workers and forget its blocks.

    \b
    Example:
      elasticps cancel mnist

    \b
    Exit codes:
      0    asked for; the job ends
      1    the cluster cannot be reached
      2    no such job
    """

    async def stop() -> None:
        async with settings.connect() as api:
            require_known("job", job, await api.job_names())
            answer = await api.cancel(job)
        said = answer.state if answer.final else f"{answer.state}, and is being stopped"
        print_json(answer) if as_json else click.echo(f"{answer.job}: {said}")

    run_async(stop())


@click.command()
@click.argument(
    "jobs", nargs=-1, required=True, metavar="JOB...", shell_complete=complete_ended_job
)
@json_option
@click.pass_obj
def forget(settings: Settings, jobs: tuple[str, ...], as_json: bool) -> None:
    """Take each JOB, which has ended, out of what the cluster remembers.

    Its name may be given again. Its checkpoints stay where they are, and so do the nodes' log
    files. The oldest ended jobs are forgotten without this, by the daemons' setting kept_jobs.

    \b
    Example:
      elasticps forget mnist
      elasticps jobs --state FAILED --json | jq -r '.jobs[].job' |
          xargs elasticps forget

    \b
    Exit codes:
      0    forgotten
      1    the cluster cannot be reached
      2    no such job, or one that has not ended: those before it are forgotten
    """
    done: list[Forgotten] = []

    async def take_out() -> None:
        async with settings.connect() as api:
            known = await api.job_names()
            for job in jobs:
                require_known("job", job, known)
            for job in dict.fromkeys(jobs):
                forgotten = await api.forget(job)
                done.append(forgotten)
                if not as_json:
                    click.echo(printable(_told(forgotten)))

    try:
        run_async(take_out())
    finally:
        if as_json and done:
            print_json(ForgottenJobs(jobs=tuple(done)))


def _told(forgotten: Forgotten) -> str:
    where = forgotten.checkpoint_dir
    return f"{forgotten.job}: forgotten{f'; its checkpoints stay in {where}' if where else ''}"
