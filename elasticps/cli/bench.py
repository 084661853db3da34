"""``elasticps bench``: how fast workers push to and pull from the shard servers of a cluster."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

import elasticps
from elasticps.cli import output
from elasticps.cli.answers import Job, Submission
from elasticps.cli.ending import cancel
from elasticps.cli.opened import MAX_NODES, local_cluster, while_whole
from elasticps.cli.options import MAX_WORKERS, Settings, block_bytes_option, json_option, run_async
from elasticps.cli.progress import Progress
from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.consistency import MAX_REPLICAS
from elasticps.core.push_pull import PushPull, from_metrics
from elasticps.daemon.chosen import check_chosen
from elasticps.errors import JobFailed, UsageError

if TYPE_CHECKING:
    from elasticps.cli.client import Api

SCRIPT = Path(elasticps.__file__).parent / "worker" / "bench.py"
SMALL_NBYTES, SMALL_STEPS = 4096, 500
MAX_MEGABYTES, MAX_STEPS = 16_384, 100_000
LOOK_S = 0.2


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed. ``gb_per_s``: of all workers, both ways; latencies: 4 KB there and back."""

    workers: int
    replicas: int
    codec: str
    transport: str
    megabytes: float
    steps: int
    gb_per_s: float
    step_p50_ms: float
    step_p99_ms: float
    latency_p50_us: float
    latency_p99_us: float


@click.command()
@click.option(
    "--nodes",
    type=click.IntRange(1, MAX_NODES),
    help="Start a cluster of so many nodes here for it.  [default: the cluster at --api]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=1,
    show_default=True,
    help="How many push and pull at the same time, each all of it.",
)
@click.option(
    "--megabytes",
    type=click.FloatRange(0.004096, MAX_MEGABYTES),
    default=100.0,
    show_default=True,
    help="What a step pushes, and pulls, of float32.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    default=20,
    show_default=True,
    help="How many steps are timed.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, MAX_REPLICAS),
    metavar="N",
    default=1,
    show_default=True,
    help="Copies of each block.",
)
@block_bytes_option
@click.option(
    "--codec",
    metavar="NAME",
    default=DEFAULT_CODEC,
    show_default=True,
    help="How gradients are coded.",
)
@json_option
@click.pass_obj
def bench(
    settings: Settings,
    /,
    nodes: int | None,
    workers: int,
    megabytes: float,
    steps: int,
    replicas: int,
    block_bytes: int,
    codec: str,
    as_json: bool,
) -> None:
    """Measure push and pull between workers and the shard servers of a cluster.

    A job of its own does it, as any script would: a random gradient is pushed, SGD is applied to
    it, and all new values are pulled; every element is checked. A second job takes the time of 4
    KB. On a cluster all nodes need elasticps where this machine has it.

    \b
    Example:
      elasticps bench --nodes 1
      elasticps bench --nodes 2 --workers 2 --replicas 2 --megabytes 400
      elasticps --api http://10.0.0.7:7400 bench --json

    \b
    Exit codes:
      0    printed
      1    a job failed, an element was wrong, or the cluster broke
      2    something is refused, by name
    """
    if nodes is not None and replicas > nodes:
        raise UsageError(
            f"{replicas} copies on {nodes} nodes", field="replicas", limit=f"1 to {nodes}"
        )

    def submission(nbytes: int, count: int) -> Submission:
        exact = int(codec == DEFAULT_CODEC)
        return Submission(
            argv=(str(SCRIPT), str(nbytes), str(count), str(exact)),
            cwd=str(SCRIPT.parent),
            start_workers=workers,
            max_workers=workers,
            replicas=replicas,
            block_bytes=block_bytes,
            codec=codec,
        )

    large = submission(int(megabytes * 1e6) // 4 * 4, steps)
    small = submission(SMALL_NBYTES, SMALL_STEPS)
    check_chosen(large)

    async def both(api: Api, progress: Progress) -> Bench:
        many = await _measured(api, large, progress, f"{megabytes:g} MB")
        few = await _measured(api, small, progress, "4 KB")
        return _bench(large, many, few)

    async def on_the_cluster() -> Bench:
        with Progress() as progress:
            async with settings.connect() as api:
                return await both(api, progress)

    async def here(count: int) -> Bench:
        from elasticps.cli.client import Api

        per_node = -(-workers // count)
        opened = local_cluster(nodes=count, workers_per_node=per_node, etcd=None, keep_logs=None)
        with Progress() as progress:
            progress.show(f"starting {output.count(count, 'node')} ...")
            async with opened() as cluster, Api(cluster.api) as api:
                return await while_whole(cluster, both(api, progress), "the measurement")

    answer = run_async(on_the_cluster() if nodes is None else here(nodes))
    if as_json:
        output.print_json(answer)
    else:
        _print(answer)


async def _measured(api: Api, submission: Submission, progress: Progress, what: str) -> PushPull:
    """What the job has measured. Raises JobFailed; whatever ends the waiting ends the job."""
    from elasticps.cli.client import watch

    submitted = await api.submit(submission)
    try:
        async with aclosing(watch(api.status, period_s=LOOK_S)) as statuses:
            async for status in statuses:
                job = next((each for each in status.jobs if each.job == submitted.job), None)
                if job is not None and job.final:
                    return _verdict(job)
                reason = f": {output.printable(job.reason)}" if job is not None else ""
                progress.show(f"pushing and pulling {what}{reason}")
    except JobFailed:
        raise
    except BaseException:
        await cancel(api, submitted.job)
        raise
    raise AssertionError("a watch ends by an error alone")


def _verdict(job: Job) -> PushPull:
    where = f"job {job.job}"
    if job.state != "SUCCEEDED":
        if job.failure is not None:
            click.echo(output.failure_text(job.failure), err=True)
        raise JobFailed(f"{job.state}: {job.reason}", where=where)
    found = from_metrics(job.metrics)
    if found is None:
        raise JobFailed("it has told no figures", where=where)
    if found.wrong:
        raise JobFailed(f"{found.wrong} elements are not what SGD makes of them", where=where)
    return found


def _bench(submission: Submission, many: PushPull, few: PushPull) -> Bench:
    return Bench(
        workers=submission.start_workers,
        replicas=submission.replicas,
        codec=submission.codec,
        transport=many.transport,
        megabytes=many.nbytes / 1e6,
        steps=many.steps,
        gb_per_s=submission.start_workers * many.gb_per_s,
        step_p50_ms=many.p50_s * 1e3,
        step_p99_ms=many.p99_s * 1e3,
        latency_p50_us=few.p50_s * 1e6,
        latency_p99_us=few.p99_s * 1e6,
    )


def _print(found: Bench) -> None:
    copies = "1 copy" if found.replicas == 1 else f"{found.replicas} copies"
    coded = "" if found.codec == DEFAULT_CODEC else f", codec {found.codec}"
    who = f"{output.count(found.workers, 'worker')}, {copies}{coded}"
    click.echo(f"{who}, over {found.transport or 'an unknown transport'}")
    click.echo(
        f"{found.megabytes:g} MB pushed and pulled: {found.gb_per_s:.3g} GB/s,"
        f" p50 {found.step_p50_ms:.4g} ms, p99 {found.step_p99_ms:.4g} ms a step"
    )
    click.echo(
        f"4 KB pushed and pulled: p50 {found.latency_p50_us:.4g} us,"
        f" p99 {found.latency_p99_us:.4g} us"
    )
