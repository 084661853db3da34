"""``elasticps restart``: daemons started anew one after the other, each once it holds nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import click

from elasticps.cli.answers import Node, Status
from elasticps.cli.completion import complete_node
from elasticps.cli.options import Settings, require_known, run_async, seconds
from elasticps.cli.output import print_json
from elasticps.cli.progress import Progress
from elasticps.errors import ElasticError, PeerUnavailable, UsageError

if TYPE_CHECKING:
    from elasticps.cli.client import Api

LOOK_S = 0.5
SILENCE_S = 120.0
"""How long no daemon at all may answer: as long as the only one may take to start."""

Answer = TypeVar("Answer")


@click.command()
@click.argument("nodes", nargs=-1, shell_complete=complete_node)
@click.option("--rolling", is_flag=True, help="All nodes, the leader last.")
@click.option(
    "--timeout",
    "timeout_s",
    type=seconds,
    metavar="SECONDS",
    help="Give up on a node after this long.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a node, on a line.")
@click.pass_obj
def restart(
    settings: Settings,
    nodes: tuple[str, ...],
    rolling: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Restart the daemons of NODES, or of all nodes, one after the other.

    Each is drained, starts again, and is waited for until the jobs have all their copies back; no
    push is lost, and training goes on meanwhile. What is new is then in force: an upgrade, or
    settings that a reload does not take.

    \b
    Example:
      elasticps restart --rolling
      elasticps restart --timeout 300 machine-b

    \b
    Exit codes:
      0    all have started again and hold their copies
      1    the cluster cannot be reached, or --timeout passed: it goes on
      2    no such node
    """
    if rolling == bool(nodes):
        raise UsageError("name the nodes, or say --rolling", field="nodes", limit="one of them")

    async def one_by_one() -> None:
        cluster = _Cluster(settings)
        status = await cluster.status()
        for name in nodes:
            require_known("node", name, (node.node for node in status.nodes))
        _check_room(status)
        with Progress() as progress:
            for name in nodes or _leader_last(status):
                began = time.monotonic()
                await _restarted(cluster, name, timeout_s, progress)
                took_s = time.monotonic() - began
                if as_json:
                    print_json({"node": name, "restarted_in_s": took_s}, indent=0)
                else:
                    click.echo(f"{name}: restarted in {took_s:.1f} s")

    run_async(one_by_one())


class _Cluster:
    """All the daemons: who is asked may be the one that restarts, then another answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._urls = [settings.api]

    async def ask(self, call: Callable[[Api], Awaitable[Answer]]) -> Answer:
        """Raises PeerUnavailable when none of them answers."""
        failure = PeerUnavailable("no daemon is known")
        for url in self._urls:
            try:
                async with replace(self._settings, api=url).connect() as api:
                    return await call(api)
            except PeerUnavailable as error:
                failure = error
        raise failure

    async def status(self) -> Status:
        status = await self.ask(lambda api: api.status())
        known = [node.http for node in status.nodes if node.reachable]
        self._urls = known + [url for url in self._urls if url not in known]
        return status

    async def until(self, holds: Callable[[Status], bool], progress: Progress, text: str) -> None:
        """Raises PeerUnavailable when nobody has answered for long."""
        heard = time.monotonic()
        while True:
            try:
                if holds(await self.status()):
                    return
                heard = time.monotonic()
            except PeerUnavailable:
                if time.monotonic() - heard > SILENCE_S:
                    raise
            progress.show(text)
            await asyncio.sleep(LOOK_S)


async def _restarted(
    cluster: _Cluster, name: str, timeout_s: float | None, progress: Progress
) -> None:
    step = "waiting for all copies of all blocks"
    try:
        async with asyncio.timeout(timeout_s):
            await cluster.until(is_whole, progress, f"{name}: {step}")
            before = _incarnation(await cluster.status(), name)
            step = "draining and starting again"
            await cluster.ask(lambda api: api.restart(name))

            def is_back(status: Status) -> bool:
                return _incarnation(status, name) not in (None, before)

            await cluster.until(is_back, progress, f"{name}: {step}")
            step = "waiting for the copies to come back"
            await cluster.until(is_whole, progress, f"{name}: {step}")
    except TimeoutError:
        raise ElasticError(
            f"not restarted within {timeout_s:g} s: {step}",
            where=name,
            field="timeout",
            hint=f"it goes on; `elasticps undrain {name}` stops a drain",
        ) from None


def _leader_last(status: Status) -> list[str]:
    return sorted((node.node for node in status.nodes), key=lambda name: name == status.leader)


def _incarnation(status: Status, name: str) -> str | None:
    """Of a node that is ready to serve; None of one that is not."""
    found = next((node for node in status.nodes if node.node == name), None)
    return found.incarnation if found and is_ready(found) else None


def is_ready(node: Node) -> bool:
    return node.state == "ready" and node.reachable


def is_whole(status: Status) -> bool:
    """Every job has the copies that its nodes can hold, and none is on its way."""
    ready = sum(map(is_ready, status.nodes))
    return all(
        job.final or (not job.pending_moves and (not job.under_replicated or job.replicas > ready))
        for job in status.jobs
    )


def _check_room(status: Status) -> None:
    """Raise UsageError where a node that drains could hand its blocks to nobody."""
    busy = [job.job for job in status.jobs if not job.final]
    if busy and sum(map(is_ready, status.nodes)) < 2:
        raise UsageError(
            f"there is no other node for the blocks of {', '.join(busy)}",
            field="nodes",
            limit="at least 2 that are ready, or no job",
        )
