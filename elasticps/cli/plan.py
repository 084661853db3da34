"""``elasticps plan``: how long a step of a script would take under each strategy and codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from elasticps.cli import output
from elasticps.cli.answers import Submission
from elasticps.cli.opened import MAX_NODES, MAX_WORKERS_PER_NODE, local_cluster, while_whole
from elasticps.cli.options import (
    MAX_WORKERS,
    Settings,
    block_bytes_option,
    check_job,
    json_option,
    run_async,
    script_argument,
)
from elasticps.cli.progress import Progress
from elasticps.cli.trial import AUTO, Trial, link_from, try_out
from elasticps.core.choices import choose
from elasticps.core.consistency import MAX_REPLICAS
from elasticps.core.cost import Link, Prediction
from elasticps.errors import UsageError


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One row: a step's seconds, and what they go to. ``differs`` is empty for an exact choice."""

    strategy: str
    codec: str
    step_s: float
    parts: dict[str, float]
    reason: str
    differs: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed: the fastest choice first, what ``auto`` takes, and what was measured.

    ``bytes_per_s`` and ``round_trip_s`` are those of the link that is predicted for; None: the
    workers share one node, and ``--link`` named no other.
    """

    script: str
    nodes: int
    workers: int
    replicas: int
    model_bytes: int
    steps: int
    compute_s: float
    bytes_per_s: float | None
    round_trip_s: float | None
    supposed: bool
    choices: tuple[Choice, ...]
    auto: Choice
    auto_approximate: Choice


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--nodes",
    type=click.IntRange(1, MAX_NODES),
    default=2,
    show_default=True,
    help="How many daemons to start on this machine for it.",
)
@click.option(
    "--workers-per-node",
    type=click.IntRange(1, MAX_WORKERS_PER_NODE),
    default=1,
    show_default=True,
    help="How many workers each of them runs.",
)
@click.option(
    "--on-cluster",
    type=click.IntRange(1, MAX_WORKERS),
    metavar="WORKERS",
    help="Try it with so many workers on the cluster at --api, in place of one started here.",
)
@click.option(
    "--link",
    type=link_from,
    metavar="RATE,ROUND_TRIP",
    help="Predict for links like this between the nodes, such as 1Gbit,5ms.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, MAX_REPLICAS),
    metavar="N",
    default=2,
    show_default=True,
    help="Copies of each block.",
)
@block_bytes_option
@json_option
@script_argument
@click.pass_obj
def plan(
    settings: Settings,
    /,
    nodes: int,
    workers_per_node: int,
    on_cluster: int | None,
    link: Link | None,
    as_json: bool,
    script: Path,
    args: tuple[str, ...],
    **job: Any,
) -> None:
    """Predict how long a step of SCRIPT takes under each strategy and codec, and say why.

    SCRIPT runs for a few steps, and is stopped then; what its workers write is not shown. What is
    measured is its computing, the optimizer, the model's size, the links between the workers and
    with the servers, and the codecs.

    \b
    Example:
      elasticps plan train.py
      elasticps plan --nodes 4 --link 1Gbit,5ms train.py
      elasticps --api http://10.0.0.7:7400 plan --on-cluster 4 /srv/train.py

    \b
    Exit codes:
      0    printed
      1    the script failed, or its cluster broke
      2    something is refused, by name
    """
    submission = Submission(
        argv=(str(script.absolute()), *args),
        cwd=str(Path.cwd()),
        strategy=AUTO,
        start_workers=on_cluster or nodes * workers_per_node,
        max_workers=on_cluster or nodes * workers_per_node,
        **job,
    )
    check_job(submission)
    if link is not None and nodes == 1 and not on_cluster:
        raise UsageError("one node has no links", field="link", limit="--nodes 2 and more")

    async def on_the_cluster() -> Trial:
        async with settings.connect() as api:
            with Progress() as progress:
                return await try_out(api, submission, progress)

    async def here() -> Trial:
        from elasticps.cli.client import Api

        open_cluster = local_cluster(
            nodes=nodes, workers_per_node=workers_per_node, etcd=None, keep_logs=None
        )
        with Progress() as progress:
            progress.show(f"starting {output.count(nodes, 'node')} ...")
            async with open_cluster() as cluster, Api(cluster.api) as api:
                trying = try_out(api, submission, progress)
                return await while_whole(cluster, trying, "the trial of the script")

    trial = run_async(on_the_cluster() if on_cluster else here())
    answer = _plan(str(script), trial, link)
    if as_json:
        output.print_json(answer)
    else:
        from elasticps.cli import render

        render.print_plan(answer)


def _plan(script: str, trial: Trial, supposed: Link | None) -> Plan:
    predictions = trial.predictions(supposed)
    measured = trial.measured
    link = supposed if supposed and trial.setting.nodes > 1 else trial.link
    return Plan(
        script=script,
        nodes=trial.setting.nodes,
        workers=measured.workers,
        replicas=min(trial.setting.replicas, trial.setting.nodes),
        model_bytes=measured.model_bytes,
        steps=measured.steps,
        compute_s=measured.compute_s,
        bytes_per_s=link.bytes_per_s if link else None,
        round_trip_s=link.round_trip_s if link else None,
        supposed=supposed is not None and link is supposed,
        choices=tuple(map(_choice, sorted(predictions, key=lambda each: each.step_s))),
        auto=_choice(choose(predictions, approximate=False)),
        auto_approximate=_choice(choose(predictions, approximate=True)),
    )


def _choice(prediction: Prediction) -> Choice:
    candidate = prediction.candidate
    return Choice(
        strategy=candidate.strategy,
        codec=candidate.codec,
        step_s=prediction.step_s,
        parts=dict(prediction.parts),
        reason=prediction.reason,
        differs=candidate.differs,
    )
