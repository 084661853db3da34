"""What is printed: an answer as JSON or as tables, a worker's line, a job's end, sizes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from elasticps.cli.answers import (
    Failure,
    Job,
    Jobs,
    Line,
    Moves,
    Nodes,
    Status,
    StoredCheckpoints,
)
from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.cost import Prediction

Answer = Status | Nodes | Jobs | Moves | StoredCheckpoints


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """To stdout, as one JSON document or as tables for people."""
    if as_json:
        print_json(answer)
        return
    from elasticps.cli import render  # rich is for tables alone

    render.print_answer(answer)


def print_json(answer: object, *, indent: int = 2) -> None:
    """One JSON document; with ``indent`` 0 on one line."""
    document = msgspec.json.format(msgspec.json.encode(answer), indent=indent or -1)
    sys.stdout.write(document.decode() + "\n")


def print_line(line: Line) -> None:
    """``[node] text`` to the stream of ours that has the name of the worker's."""
    stream = sys.stdout if line.stream == "stdout" else sys.stderr
    stream.write(f"[{line.node}] {line.text}\n")
    stream.flush()


def failure_text(failure: Failure) -> str:
    """Whose failure it is and its traceback, for people."""
    label = f"worker {failure.worker} on node {failure.node} failed: {failure.reason}"
    trace = failure.traceback.rstrip("\n")
    return f"{label}\n\n{trace}\n" if trace else label


def metric(metrics: Mapping[str, float | None]) -> str:
    """The loss, or else the first metric, as ``name value``; empty when there is none."""
    for name in ("loss", *metrics):
        if name in metrics:
            value = metrics[name]
            return f"{name} {'nan' if value is None else format(value, '.4g')}"
    return ""


def audit(job: Job) -> str:
    """What was counted and of whom; nothing that sounds well of a job that did not succeed."""
    verdict = job.verdict
    found = (
        f"{verdict.acknowledged} pushes of {count(verdict.workers, 'worker')} acknowledged, "
        f"{verdict.lost} lost, {verdict.duplicated} duplicated"
    )
    if not job.final:
        return f"audit: {found} so far"
    workers = count(verdict.workers + verdict.unaudited, "worker")
    incomplete = f"audit incomplete: {verdict.unaudited} of {workers} did not end in order"
    if job.state != "SUCCEEDED" and not verdict.broken:
        return f"{incomplete}; no verdict" if verdict.unaudited else "audit: no verdict"
    return f"{incomplete}; {found}" if verdict.unaudited else f"audit: {found}"


def traffic(job: Job) -> str:
    """What the job's codec saves."""
    sent, whole = human_bytes(job.pushed_bytes), human_bytes(job.gradient_bytes)
    return f"pushed {sent} for {whole} of gradients (codec {printable(job.codec)})"


def transports(job: Job) -> list[str]:
    """What the workers' pushes and pulls go over, a line for those that say the same."""
    told = Counter(each.transport for each in job.workers if each.state == "running")
    told.pop("", None)
    return [f"{count(number, 'worker')}: {text}" for text, number in sorted(told.items())]


def decision(chosen: Prediction, predictions: Sequence[Prediction]) -> str:
    """What ``auto`` has come to, and why."""
    candidate = chosen.candidate
    coded = f" with codec {candidate.codec}" if candidate.codec != DEFAULT_CODEC else ""
    told = f"auto: {candidate.strategy}{coded}: {duration(chosen.step_s)} a step, {chosen.reason}"
    base = predictions[0]
    if candidate == base.candidate:
        exact = [each for each in predictions[1:] if each.candidate.exact]
        others = ", ".join(f"{each.candidate.strategy} {duration(each.step_s)}" for each in exact)
        return f"{told}; {others}"
    return f"{told}; {base.candidate.strategy} {duration(base.step_s)}, {base.reason}"


def duration(seconds: float) -> str:
    """``0.52 ms``, ``12.3 ms``, ``1.24 s``: three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def ago(unix_s: float) -> str:
    """How long that is: ``12 s``, ``5 min``, ``3 h``, ``2 d``; two machines' clocks may differ."""
    passed_s = max(0.0, time.time() - unix_s)
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed_s >= size_s:
            return f"{passed_s // size_s:.0f} {unit}"
    return f"{passed_s:.0f} s"


def when(unix_s: float | None) -> str:
    """``2026-01-31 13:05 UTC``; a dash where it is not known."""
    if not unix_s:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def human_bytes(size: float) -> str:
    """``0 B``, ``512 B``, ``4.0 MiB``."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1023.95 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def printable(text: str) -> str:
    """``text`` on one line, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
