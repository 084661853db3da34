"""``elasticps run``: a cluster of this machine alone, for one job, gone when the job is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from elasticps.cli import output
from elasticps.cli.answers import Job, Node, Status, Submission
from elasticps.cli.ending import cancel
from elasticps.cli.opened import (
    MAX_NODES,
    MAX_WORKERS_PER_NODE,
    OpenCluster,
    local_cluster,
    while_whole,
)
from elasticps.cli.options import check_job, job_options, run_async, script_argument
from elasticps.cli.progress import Progress
from elasticps.cli.trial import decided, is_auto
from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.daemon.chosen import check_chosen, check_places
from elasticps.errors import CheckpointError, JobFailed, PeerUnavailable, UsageError

if TYPE_CHECKING:
    from elasticps.cli.client import Api

LAST_LINES_S = 5.0
"""How long the workers' last lines may take to arrive after the job has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job to be run on a cluster that is opened for it."""

    submission: Submission
    nodes: int
    as_json: bool = False


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--nodes",
    type=click.IntRange(1, MAX_NODES),
    default=1,
    show_default=True,
    help="How many daemons to start on this machine.",
)
@click.option(
    "--workers-per-node",
    type=click.IntRange(1, MAX_WORKERS_PER_NODE),
    default=1,
    show_default=True,
    help="How many workers each of them runs.",
)
@click.option(
    "--etcd",
    metavar="HOST:PORT,...",
    help="Use this etcd.  [default: one that is started for the job and removed with it]",
)
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print the job as the last line, in JSON.")
@click.option(
    "--keep-logs",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the cluster's files, its logs among them, in this folder.",
)
@script_argument
def run(
    nodes: int,
    workers_per_node: int,
    etcd: str | None,
    as_json: bool,
    keep_logs: Path | None,
    script: Path,
    args: tuple[str, ...],
    **job: Any,
) -> None:
    """Train SCRIPT with its ARGS on a cluster that is started here for it, and stop it afterwards.

    Prints what the workers write as "[node] text", each to the stream it came from; how far the
    job is goes to stderr. Everything behind SCRIPT is the script's.

    \b
    Example:
      elasticps run train.py
      elasticps run --nodes 3 --audit train.py --epochs 10

    \b
    Exit codes:
      0    the job succeeded
      1    it failed, or its cluster broke
      2    something about the job is refused, by name
      130  stopped by Ctrl-C (143: by SIGTERM), and all that was started with it
    """
    submission = Submission(
        argv=(str(script.absolute()), *args),
        cwd=str(Path.cwd()),
        start_workers=nodes * workers_per_node,
        **job,
    )
    check_job(submission)
    check_chosen(submission)
    check_places(submission)
    is_auto(submission)
    _check_resumable(submission)
    if submission.min_insync > nodes:
        raise UsageError(
            f"min_insync of {submission.min_insync} on {nodes} nodes can acknowledge nothing",
            field="min_insync",
            limit=f"1 to {nodes}",
        )
    asked = click.get_current_context().get_parameter_source("replicas")
    if submission.replicas > nodes and asked is not ParameterSource.DEFAULT:
        click.echo(
            f"warning: replicas of {submission.replicas} on {nodes} node{'s' if nodes > 1 else ''}:"
            f" each block has {nodes} cop{'ies' if nodes > 1 else 'y'}"
            f" (--nodes {submission.replicas} has room for all)",
            err=True,
        )

    open_cluster = local_cluster(
        nodes=nodes, workers_per_node=workers_per_node, etcd=etcd, keep_logs=keep_logs
    )
    run_async(run_job(open_cluster, Run(submission=submission, nodes=nodes, as_json=as_json)))


def _check_resumable(submission: Submission) -> None:
    """Raise UsageError where a worker could only fail: all of them will be on this machine."""
    from elasticps.checkpoint.directory import candidates, point_to_older
    from elasticps.checkpoint.manifest import read_manifest
    from elasticps.checkpoint.url import place_of

    if not submission.resume:
        return
    damaged: list[tuple[Path, CheckpointError]] = []
    try:
        for directory in candidates(place_of(submission.resume)):
            try:
                read_manifest(directory)
            except CheckpointError as error:
                point_to_older(error, directory)
                damaged.append((directory, error))
            else:
                break
        else:
            raise damaged[0][1]
    except CheckpointError as error:
        raise UsageError(
            error.what, where=error.where, field=error.field, limit=error.limit, hint=error.hint
        ) from error
    for directory, found in damaged:
        click.echo(f"warning: {directory} is passed over: {found.what}", err=True)


async def run_job(open_cluster: OpenCluster, wanted: Run) -> None:
    """Open the cluster, run the job, close the cluster. Raises JobFailed unless it succeeded.

    Cancellation cancels the job and closes the cluster.
    """
    from elasticps.cli.client import Api

    with Progress() as progress:
        progress.show(f"starting {wanted.nodes} node{'s' if wanted.nodes > 1 else ''} ...")
        async with open_cluster() as cluster, Api(cluster.api) as api:
            with progress.above():
                click.echo(f"cluster API: {cluster.api}", err=True)
                hint = f"elasticps --api {cluster.api} status"
                click.echo(f"in another terminal: {hint}", err=True)
            deciding = decided(api, wanted.submission, progress)
            submission = await while_whole(cluster, deciding, "the trial of the script")
            submitted = await api.submit(submission)
            try:
                following = _follow(api, submitted.job, progress)
                job = await while_whole(cluster, following, submitted.job)
            except BaseException:  # whatever ends the following ends the job
                progress.show("cancelling the job and stopping the cluster ...")
                await cancel(api, submitted.job)
                raise
            progress.show("stopping the cluster ...")
    _conclude(job, wanted)


async def _follow(api: Api, name: str, progress: Progress) -> Job:
    """Show the job's lines and progress until it has ended."""
    from elasticps.cli.client import watch

    async with asyncio.TaskGroup() as group, aclosing(watch(api.status)) as statuses:
        lines = _Lines(api, name, progress, group)
        furthest: int | None = None
        async for status in statuses:
            job = next((each for each in status.jobs if each.job == name), None)
            if job is None:  # asked of a daemon that has not heard of it yet
                continue
            lines.open(job, status.nodes)
            if job.final:
                await lines.aclose()
                return job
            # The newest worker's word may be missing, or that of one which has begun to catch up.
            furthest = max(furthest or 0, job.round) if job.round is not None else furthest
            progress.show(_progress(job, status, furthest))
    raise AssertionError("a watch ends by an error alone")


class _Lines:
    """What a job's workers write, shown as it comes.

    Each node is asked for its own, so that only a dead node's lines end early.
    """

    def __init__(self, api: Api, job: str, progress: Progress, group: asyncio.TaskGroup) -> None:
        self._api = api
        self._job = job
        self._progress = progress
        self._group = group
        self._streams: dict[str, asyncio.Task[None]] = {}

    def open(self, job: Job, nodes: Iterable[Node]) -> None:
        """Begin with the nodes that have workers by now; at the job's end any may have had some."""
        working = {worker.node for worker in job.workers}
        for node in nodes:
            if (job.final or node.node in working) and node.http not in self._streams:
                self._streams[node.http] = self._group.create_task(self._show(node))

    async def aclose(self) -> None:
        """Wait for the last lines of a job that has ended, for a while."""
        if self._streams:
            await asyncio.wait(self._streams.values(), timeout=LAST_LINES_S)
        for stream in self._streams.values():
            stream.cancel()

    async def _show(self, node: Node) -> None:
        try:
            async for line in self._api.lines(self._job, follow=True, node=node):
                with self._progress.above():
                    output.print_line(line)
        except PeerUnavailable:
            with self._progress.above():
                click.echo(f"warning: node {node.node} is gone, its lines end here", err=True)


TOLD = ("waiting", "fewer than", "is not heard")
"""What in a running job's reason its user should see: it waits, lacks copies, or its placement."""


def _progress(job: Job, status: Status, furthest: int | None) -> str:
    ready = sum(node.state == "ready" and node.reachable for node in status.nodes)
    parts = [f"{job.job} {job.state.lower()}"]
    if furthest is not None:
        parts += [f"round {furthest}", output.metric(job.metrics)]
    if furthest is None or any(word in job.reason for word in TOLD):
        parts.append(output.printable(job.reason))
    parts.append(f"{ready} of {len(status.nodes)} nodes ready")
    if job.pending_moves:
        parts.append(f"{job.pending_moves} blocks moving")
    return ", ".join(part for part in parts if part)


def _conclude(job: Job, wanted: Run) -> None:
    """Say how it ended. Raises JobFailed, with the worker's traceback, when it ended badly."""
    if wanted.submission.audit:
        click.echo(output.audit(job), err=True)
    if job.codec != DEFAULT_CODEC:
        click.echo(output.traffic(job), err=True)
    if wanted.as_json:
        output.print_json(job, indent=0)
    if job.failure is not None:
        click.echo(output.failure_text(job.failure), err=True)
    failed = str(job.checkpoint_attempts)
    if failed and job.state != "SUCCEEDED":
        click.echo(output.printable(failed), err=True)
    if job.state != "SUCCEEDED":
        raise JobFailed(f"{job.state}: {job.reason}", where=f"job {job.job}")
    if job.verdict.broken:
        raise JobFailed("its pushes were not applied exactly once", where=f"job {job.job}")
    rounds = f" after {job.round} rounds" if job.round is not None else ""
    but = f"; {failed}" if failed else ""
    click.echo(output.printable(f"job {job.job} succeeded{rounds}{but}"), err=True)
