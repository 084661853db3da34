"""Trying a script out: a job of a few steps, from which the time of every choice is predicted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

import click
import msgspec

from elasticps.api.choice import parse_choice
from elasticps.cli import output
from elasticps.cli.answers import Job, Submission
from elasticps.cli.ending import cancel
from elasticps.core.blocks import DEFAULT_BLOCK_BYTES
from elasticps.core.choices import CANDIDATES, choose
from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.consistency import Consistency
from elasticps.core.cost import Costs, Link, Prediction, Setting, measured_link, predict
from elasticps.core.measured import DONE, Measured, from_metrics
from elasticps.errors import JobFailed, UsageError

if TYPE_CHECKING:
    from elasticps.cli.client import Api
    from elasticps.cli.progress import Progress

AUTO = "auto"
LOOK_S = 0.2
_BITS = {"Kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_LINK = re.compile(rf"{_NUMBER}(Kbit|Mbit|Gbit),{_NUMBER}(us|ms|s)")


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has measured, and where."""

    job: str
    measured: Measured
    setting: Setting

    @property
    def link(self) -> Link | None:
        return measured_link(self.measured, self.setting)

    def predictions(self, link: Link | None = None) -> tuple[Prediction, ...]:
        """Of every candidate, over ``link`` in place of the one that there is. Nearest first."""
        costs = Costs(self.measured, self.setting, link)
        return tuple(predict(costs, candidate) for candidate in CANDIDATES)


def link_from(text: str) -> Link:
    """The type of an option: ``1Gbit,5ms``, a rate each way and the time there and back."""
    match = _LINK.fullmatch(text)
    rate, unit, delay, scale = match.groups() if match else ("0", "Kbit", "0", "s")
    if not float(rate):
        raise click.BadParameter(
            f"{text!r} is not a link (limit: RATE,ROUND_TRIP as in 1Gbit,5ms or 20Mbit,500us)"
        )
    return Link(
        bytes_per_s=float(rate) * _BITS[unit] / 8, round_trip_s=float(delay) * _SECONDS[scale]
    )


def is_auto(submission: Submission) -> bool:
    """Is the strategy to be chosen by measuring? Raises UsageError for what goes not with that."""
    choice = parse_choice(submission.strategy, "strategy")
    if choice.name != AUTO:
        return False
    _allows_approximate(choice.options)
    if submission.codec != DEFAULT_CODEC:
        raise UsageError("auto chooses the codec too", field="codec", limit="none given")
    if submission.consistency is not Consistency.SYNC or submission.backup_workers:
        raise UsageError(
            "auto chooses among strategies in whole rounds",
            field="consistency",
            limit="sync consistency without backup workers",
        )
    return True


def _allows_approximate(options: Mapping[str, object]) -> bool:
    value = options.get("approximate", False)
    if not isinstance(value, bool) or set(options) - {"approximate"}:
        raise UsageError(
            "auto has one option", field="strategy", limit="auto or auto:approximate=true"
        )
    return value


async def decided(api: Api, submission: Submission, progress: Progress) -> Submission:
    """The submission with what ``auto`` stands for; says what that is and why.

    Raises JobFailed when the script cannot be tried out.
    """
    if not is_auto(submission):
        return submission
    approximate = _allows_approximate(parse_choice(submission.strategy, "strategy").options)
    trial = await try_out(api, submission, progress)
    predictions = trial.predictions()
    checkpoints = bool(submission.checkpoint_dir or submission.resume)
    chosen = choose(predictions, approximate=approximate, checkpoints=checkpoints)
    with progress.above():
        click.echo(output.decision(chosen, predictions), err=True)
    candidate = chosen.candidate
    return msgspec.structs.replace(submission, strategy=candidate.strategy, codec=candidate.codec)


async def try_out(api: Api, submission: Submission, progress: Progress) -> Trial:
    """Run the script until enough is measured, and end that job.

    Raises JobFailed when the script fails, or ends before it has taken a step.
    """
    tried = msgspec.structs.replace(
        submission,
        strategy=AUTO,
        codec=DEFAULT_CODEC,
        checkpoint_dir="",
        checkpoint_every=0,
        resume="",
        resume_reset_optimizer=False,
        audit=False,
        name=None,
    )
    submitted = await api.submit(tried)
    try:
        job, nodes = await _measuring(api, submitted.job, progress)
    except BaseException:  # whatever ends the waiting ends the job
        await cancel(api, submitted.job)
        raise
    measured = from_metrics(job.metrics)
    if measured is None:
        raise _unmeasured(job)
    if not job.final:
        await cancel(api, submitted.job)
    block_bytes = submission.block_bytes or DEFAULT_BLOCK_BYTES
    largest = min(block_bytes, measured.largest_parameter_bytes)
    setting = Setting(nodes=nodes, replicas=submission.replicas, largest_block_bytes=largest)
    return Trial(job=submitted.job, measured=measured, setting=setting)


async def _measuring(api: Api, name: str, progress: Progress) -> tuple[Job, int]:
    """The job once it has measured, or has ended, and how many nodes there are."""
    from elasticps.cli.client import watch

    began = asyncio.get_running_loop().time()
    async with aclosing(watch(api.status, period_s=LOOK_S)) as statuses:
        async for status in statuses:
            job = next((each for each in status.jobs if each.job == name), None)
            if job is None:  # asked of a daemon that has not heard of it yet
                continue
            if job.final or job.metrics.get(DONE):
                return job, sum(node.state == "ready" for node in status.nodes)
            waited = asyncio.get_running_loop().time() - began
            progress.show(trying(job.reason, waited, stepped=bool(job.round)))
    raise AssertionError("a watch ends by an error alone")


def trying(reason: str, waited_s: float, *, stepped: bool) -> str:
    """How far a trial is; after each 10 s also that its script has taken no step yet."""
    tens = int(waited_s) // 10 * 10
    stuck = f"; no step in the first {tens} s" if tens and not stepped else ""
    return f"trying the script out: {output.printable(reason)}{stuck}"


def _unmeasured(job: Job) -> JobFailed:
    if job.failure is not None:
        click.echo(output.failure_text(job.failure), err=True)
    if job.state != "SUCCEEDED" and job.final:
        return JobFailed(
            f"{job.state}: {job.reason}", where=f"job {job.job}, a trial of the script"
        )
    return JobFailed(
        "the script ended before a step was measured",
        where=f"job {job.job}, a trial of the script",
        hint="it must take some steps with all of its workers",
    )
