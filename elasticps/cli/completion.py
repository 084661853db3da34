"""``elasticps completion``: the shell's Tab key, which knows the cluster's jobs and nodes too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from elasticps.cli.options import DEFAULT_API, Settings
from elasticps.errors import ElasticError

if TYPE_CHECKING:
    from elasticps.cli.client import Api

LIMIT_S = 1.0
"""Who has pressed Tab waits no longer: without an answer there is nothing to choose from."""
VARIABLE = "_ELASTICPS_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes the Tab key of SHELL complete commands, options, jobs and nodes.

    Names of jobs and nodes are asked of the daemon that --api or ELASTICPS_API names, for a second
    at most.

    \b
    Example:
      eval "$(elasticps completion bash)"      # this shell; in ~/.bashrc all
      elasticps completion fish > ~/.config/fish/completions/elasticps.fish

    \b
    Exit codes:
      0    the script is printed
      2    it is not known for such a shell
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "elasticps", VARIABLE).source())


def complete_job(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The names of jobs that begin with what is typed; none where no daemon answers in time."""

    async def names(api: Api) -> Iterable[str]:
        return sorted(await api.job_names())

    return _asked(ctx, names, incomplete)


def complete_ended_job(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The names of jobs that have ended, likewise."""

    async def names(api: Api) -> Iterable[str]:
        return [job.job for job in await api.jobs() if job.final]

    return _asked(ctx, names, incomplete)


def complete_node(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The names of nodes, likewise."""

    async def names(api: Api) -> Iterable[str]:
        return [node.node for node in await api.nodes()]

    return _asked(ctx, names, incomplete)


def _asked(
    ctx: click.Context, names: Callable[[Api], Awaitable[Iterable[str]]], incomplete: str
) -> list[str]:
    options = ctx.find_root().params
    settings = Settings(
        api=options.get("api") or DEFAULT_API,
        ca=options.get("ca"),
        token_file=options.get("token_file"),
    )

    async def ask() -> Iterable[str]:
        async with asyncio.timeout(LIMIT_S), settings.connect() as api:
            return await names(api)

    try:
        found = asyncio.run(ask())
    except (ElasticError, OSError, TimeoutError):  # a complaint would lie in the typed line
        return []
    return sorted(name for name in found if name.startswith(incomplete))
