"""Every strategy on two tasks, left alone, and with a node killed and one joined in the middle.

    python benchmarks/compare/compare.py [--only TEXT] [--task NAME]

Three real daemons, one worker each. Prints a table, and one JSON object on the last line; exits
with 1 where a cell missed what must hold for its strategy.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from cells import ROWS, Outcome, Row, violations
from rich.console import Console
from rich.table import Table
from tasks import TASKS

from elasticps.testing import LocalCluster

HERE = Path(__file__).resolve().parent
NODES = 3
POLL_S = 0.1
CELL_S = 300.0
TABLE_WIDTH = 130
Json = dict[str, Any]


class CellFailed(Exception):
    """A job that did not come to its end."""


class Bench:
    """Runs cells, one after the other, on one cluster. ``arguments`` go to every worker."""

    def __init__(
        self,
        cluster: LocalCluster,
        session: aiohttp.ClientSession,
        root: Path,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self._cluster = cluster
        self._session = session
        self._root = root
        self._arguments = arguments
        self._locals: dict[str, Path] = {}
        self._count = 0

    async def outcome(self, row: Row, task: str, *, disturbed: bool) -> Outcome:
        local = await self._local(task)
        report = await self.trained(row, task, disturbed=disturbed)
        return _outcome(row, task, disturbed, report, local)

    async def trained(self, row: Row, task: str, *, disturbed: bool) -> Path:
        """Run one job to its end; the folder with what its workers wrote."""
        report = self._folder()
        job = await self._submit(row, task, report)
        async with asyncio.timeout(CELL_S):
            if disturbed:
                await self._until(job, steps=TASKS[task].rounds // 4)
                await self._disturb()
            await self._until(job, steps=None)
        return report

    def _folder(self) -> Path:
        self._count += 1
        folder = self._root / str(self._count)
        folder.mkdir()
        return folder

    async def _local(self, task: str) -> Path:
        """The folder with what one process without elasticps makes of the task."""
        if task not in self._locals:
            report = self._folder()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(HERE / "training.py"), task, str(report), "--local"),
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            if await process.wait() != 0:
                raise CellFailed("the local run failed")
            self._locals[task] = report
        return self._locals[task]

    async def _submit(self, row: Row, task: str, report: Path) -> str:
        body = {
            "argv": [
                str(HERE / "training.py"),
                task,
                str(report),
                *self._arguments,
                *row.arguments,
            ],
            "cwd": str(HERE),
            "start_workers": len(self._cluster.nodes),
            **row.job,
        }
        url = f"{self._cluster.api}/api/v1/jobs"
        async with self._session.post(url, json=body) as answer:
            document = await answer.json()
            if answer.status != 201:
                raise CellFailed(f"{row.name}: {document}")
            return str(document["job"])

    async def _until(self, job: str, *, steps: int | None) -> None:
        """Until a worker has taken so many steps; None: until the job has succeeded."""
        while True:
            found = await self._job(job)
            if found["state"] == "SUCCEEDED":
                return
            if found["state"] in ("FAILED", "CANCELLED"):
                raise CellFailed(f"{found['reason']} {found['failure']}")
            if steps is not None and (found["metrics"].get("steps") or 0) >= steps:
                return
            await asyncio.sleep(POLL_S)

    async def _job(self, job: str) -> Json:
        async with self._session.get(f"{self._cluster.api}/api/v1/jobs/{job}") as answer:
            document: Json = await answer.json()
            return document

    async def _disturb(self) -> None:
        """One node dies whole, another joins."""
        victim = list(self._cluster.nodes)[-1]
        self._cluster.kill(victim)
        await self._cluster.wait(victim)
        del self._cluster.nodes[victim]
        await self._cluster.add_node()


def _outcome(row: Row, task: str, disturbed: bool, report: Path, local: Path) -> Outcome:
    workers = [
        json.loads(path.read_text())
        for path in report.glob("*.json")
        if path.stem not in ("final", "curve")
    ]
    final, base = (json.loads((where / "final.json").read_text()) for where in (report, local))
    longest = max(workers, key=lambda worker: worker["measured_steps"])
    return Outcome(
        strategy=row.name,
        task=task,
        disturbed=disturbed,
        steps_per_s=longest["measured_steps"] / longest["seconds"],
        bytes_a_step=longest["bytes_a_step"],
        loss=final["loss"],
        accuracy=final["accuracy"],
        local_loss=base["loss"],
        local_accuracy=base["accuracy"],
        difference=_difference(report / "final.npz", local / "final.npz"),
        longest_pause_s=max(worker["longest_pause_s"] for worker in workers),
    )


def _difference(one: Path, other: Path) -> float:
    with np.load(one) as first, np.load(other) as second:
        return max(float(np.abs(first[name] - second[name]).max()) for name in first)


async def run(rows: list[Row], tasks: list[str]) -> list[tuple[Outcome, list[str]]]:
    cells = []
    with tempfile.TemporaryDirectory(prefix="elasticps-compare-") as directory:
        async with (
            aiohttp.ClientSession() as session,
            LocalCluster(nodes=NODES, lease_ttl_s=2) as cluster,
        ):
            bench = Bench(cluster, session, Path(directory))
            for row in rows:
                for task in tasks:
                    for disturbed in (False, True):
                        cell = await bench.outcome(row, task, disturbed=disturbed)
                        cells.append((cell, violations(row, cell)))
                        print(_line(*cells[-1]), file=sys.stderr, flush=True)
    return cells


def _line(cell: Outcome, missed: list[str]) -> str:
    state = "killed and joined" if cell.disturbed else "calm"
    return f"{cell.strategy} on {cell.task}, {state}: {'; '.join(missed) or 'as it must be'}"


def table(cells: list[tuple[Outcome, list[str]]]) -> Table:
    made = Table(title="strategies, measured by this run", title_justify="left")
    for title in ("strategy", "task", "", "steps/s", "kB/step", "loss (local)", "accuracy (local)"):
        made.add_column(title)
    made.add_column("longest step")
    for cell, _ in cells:
        made.add_row(
            cell.strategy,
            cell.task,
            "killed, joined" if cell.disturbed else "",
            f"{cell.steps_per_s:.1f}",
            f"{cell.bytes_a_step / 1e3:.1f}",
            f"{cell.loss:.4f} ({cell.local_loss:.4f})",
            f"{cell.accuracy:.4f} ({cell.local_accuracy:.4f})",
            f"{cell.longest_pause_s:.2f} s",
        )
    return made


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="rows whose name has this text")
    options.add_argument("--task", choices=TASKS)
    chosen = options.parse_args()
    rows = [row for row in ROWS if chosen.only in row.name]
    cells = asyncio.run(run(rows, [chosen.task] if chosen.task else list(TASKS)))
    Console(width=TABLE_WIDTH).print(table(cells))
    document = {
        "strategies": len(rows),
        "cells": len(cells),
        "violations": sum(bool(missed) for _, missed in cells),
        "measured": [{**dataclasses.asdict(cell), "violations": missed} for cell, missed in cells],
    }
    print(json.dumps(document))
    return 1 if document["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
