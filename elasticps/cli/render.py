"""Answers as tables that fit 80 columns, in colour on a terminal that wants it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from elasticps.cli.answers import (
    Checkpoint,
    Job,
    Jobs,
    Moves,
    Node,
    Nodes,
    Status,
    StoredCheckpoints,
)
from elasticps.cli.output import (
    Answer,
    ago,
    audit,
    count,
    duration,
    human_bytes,
    metric,
    printable,
    traffic,
    transports,
    when,
)
from elasticps.cli.tables import cell as _cell
from elasticps.cli.tables import console as _console
from elasticps.cli.tables import print_rows as _print_rows
from elasticps.cli.tables import state as _state
from elasticps.cli.tables import table as _table
from elasticps.core.chosen import DEFAULT_CODEC, DEFAULT_STRATEGY

if TYPE_CHECKING:
    from elasticps.cli.plan import Plan


def print_answer(answer: Answer) -> None:
    """To stdout."""
    match answer:
        case Status():
            _print_status(answer)
        case Nodes():
            _print_nodes(answer.nodes)
        case Jobs():
            _print_jobs(answer.jobs)
        case Moves():
            _print_moves(answer)
        case StoredCheckpoints():
            _print_checkpoints(answer)


def print_plan(plan: Plan) -> None:
    """What was measured, one row a choice with the fastest first, and what ``auto`` takes."""
    out = _console()
    out.print(*(Text(printable(line)) for line in _measured(plan).splitlines()), sep="\n")
    out.print()
    table = _table("STRATEGY", "CODEC", "STEP>", "WHERE THE TIME GOES", "RESULT")
    for choice in plan.choices:
        table.add_row(
            _cell(choice.strategy),
            _cell(choice.codec),
            duration(choice.step_s),
            _cell(choice.reason),
            _cell(choice.differs or "exact"),
        )
    out.print(table)
    out.print()
    for option, choice in (("auto", plan.auto), ("auto:approximate=true", plan.auto_approximate)):
        out.print(Text(printable(f"{option} takes {choice.strategy}, codec {choice.codec}")))


def _measured(plan: Plan) -> str:
    if plan.bytes_per_s is None or plan.round_trip_s is None:
        link = "no link between nodes"
    else:
        rate = f"{plan.bytes_per_s * 8e-6:.3g} Mbit/s"
        link = f"{'supposed' if plan.supposed else 'measured'} links of {rate},"
        link += f" {duration(plan.round_trip_s)} there and back"
    return (
        f"{count(plan.workers, 'worker')} on {count(plan.nodes, 'node')},"
        f" a model of {human_bytes(plan.model_bytes)},"
        f" steps that compute for {duration(plan.compute_s)};\n"
        f"{link}; {count(plan.steps, 'step')} measured"
    )


def print_plugins(plugins: Iterable[Mapping[str, str]]) -> None:
    """One row a plugin, of the columns that the mappings name."""
    table = _table("GROUP", "NAME", "DISTRIBUTION", "VERSION", "PROBLEM")
    for plugin in plugins:
        names = ("group", "name", "distribution", "version", "problem")
        table.add_row(*(_cell(plugin[name]) for name in names))
    _print_rows(table, "no plugins")


def print_plugin(plugin: Mapping[str, Any]) -> None:
    """What ``plugins info`` knows of one plugin."""
    out = _console()
    known = plugin["known_api_version"]
    out.print(Text(printable(f"{plugin['name']} ({plugin['group']})"), style="bold"))
    for label, text in (
        ("distribution", f"{plugin['distribution']} {plugin['version']}"),
        ("entry point", plugin["target"]),
        ("contract", f"version {plugin['api_version']} (this elasticps knows {known})"),
        ("purpose", plugin["about"]),
    ):
        out.print(Text(printable(f"{label:<14}{text}")))
    out.print()
    table = _table("OPTION", "DEFAULT")
    for option in plugin["options"]:
        table.add_row(_cell(option["name"]), _cell(option["default"] or "(must be given)"))
    _print_rows(table, "no options")


def _print_status(status: Status) -> None:
    out = _console()
    out.print(Text(printable(_headline(status)), style="bold"))
    out.print()
    _print_nodes(status.nodes)
    out.print()
    _print_jobs(status.jobs)
    if status.ended_left_out:
        out.print(f"({count(status.ended_left_out, 'job')} that ended before; `elasticps jobs`)")


def _print_nodes(nodes: Iterable[Node]) -> None:
    """One row a node; the leader has a star."""
    table = _table("NODE", "STATE", "LEADS>", "HOLDS>", "SIZE>", "WORKERS>", "RESTARTS>", "HTTP")
    for node in nodes:
        table.add_row(
            _cell(node.node + (" *" if node.leader else "")),
            _state(node.state if node.reachable else "unreachable"),
            str(node.leads),
            str(node.replicas),
            human_bytes(node.bytes_held),
            str(len(node.workers)),
            str(sum(child.restarts for child in node.children)),
            _cell(node.http.removeprefix("http://")),
        )
    _print_rows(table, "no nodes")


def _print_jobs(jobs: Iterable[Job]) -> None:
    """One row a job; lines below for strategy, codec, transports, newest checkpoints and failed
    audits."""
    jobs = tuple(jobs)
    table = _table("JOB", "STATE", "ROUND>", "METRIC", "WORKERS>", "BLOCKS>", "REASON")
    for job in jobs:
        running = sum(worker.state == "running" for worker in job.workers)
        table.add_row(
            _cell(job.job),
            _state(job.state),
            "-" if job.round is None else str(job.round),
            _cell(metric(job.metrics)),
            str(running),
            f"{job.blocks} ({job.pending_moves} moving)" if job.pending_moves else str(job.blocks),
            _cell(_why(job)),
        )
    _print_rows(table, "no jobs")
    for job in jobs:
        if job.strategy != DEFAULT_STRATEGY:
            _console().print(Text(printable(f"{job.job}: strategy {job.strategy}")))
        if job.codec != DEFAULT_CODEC:
            _console().print(Text(printable(f"{job.job}: {traffic(job)}")))
        for line in transports(job):
            _console().print(Text(printable(f"{job.job}: {line}")))
        if job.checkpoint is not None:
            _print_checkpoint(job.job, job.checkpoint)
        if job.failure is not None:
            _console().print(Text(printable(f"{job.job}: `elasticps logs {job.job}` says more")))
        if job.checkpoint_attempts.failed:
            failed = f"{job.job}: {job.checkpoint_attempts}"
            _console().print(Text(printable(failed), style="red"))
        if job.verdict.broken:
            _console().print(Text(f"{printable(job.job)}: {audit(job)}", style="red"))


def _why(job: Job) -> str:
    """The reason, and since when it is that."""
    if not job.since_unix:
        return job.reason
    passed = ago(job.since_unix)
    return f"{job.reason} ({f'{passed} ago' if job.final else f'for {passed}'})"


def _print_checkpoint(job: str, checkpoint: Checkpoint) -> None:
    if checkpoint.directory:
        at = f"checkpoint of round {checkpoint.round} in {checkpoint.directory}"
        _console().print(Text(printable(f"{job}: {at}")))
    if checkpoint.waits_for:
        waiting = f"{job}: the checkpoint that was asked for waits for {checkpoint.waits_for}"
        _console().print(Text(printable(waiting)))
    if checkpoint.error:
        _console().print(Text(printable(f"{job}: no newer one: {checkpoint.error}"), style="red"))


def _print_checkpoints(stored: StoredCheckpoints) -> None:
    """One row each, newest first; whole names, which --resume takes behind the directory's."""
    at = f" on {stored.node}" if stored.node else ""
    _console().print(Text(printable(f"{stored.directory}{at}")))
    table = _table("CHECKPOINT", "ROUND>", "WHEN", "SIZE>", "STATE")
    for each in stored.checkpoints:
        table.add_row(
            _cell(each.path.rpartition("/")[2]),
            str(each.round),
            when(each.created_unix),
            human_bytes(each.nbytes),
            Text(printable(each.problem or "complete"), style="red" if each.problem else "green"),
        )
    _print_rows(table, "no checkpoints")


def _print_moves(moves: Moves) -> None:
    """One row a move, and their totals."""
    table = _table("JOB", "BLOCK>", "FROM", "TO", "BYTES>")
    for move in moves.moves:
        table.add_row(
            _cell(move.job),
            str(move.block),
            _cell(move.source or "-"),
            _cell(move.target),
            human_bytes(move.bytes),
        )
    if moves.moves:
        _print_rows(table, "")
    _console().print(
        f"{count(len(moves.moves), 'move')}, {human_bytes(moves.bytes)}; "
        f"{moves.pending_moves} under way"
    )


def _headline(status: Status) -> str:
    leader = f"leader {status.leader}" if status.leader else "no leader"
    nodes, jobs = count(len(status.nodes), "node"), count(len(status.jobs), "job")
    return f"cluster {status.cluster}: {leader}, {nodes}, {jobs}, elasticps {status.version}"
