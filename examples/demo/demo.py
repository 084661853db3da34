"""The main job, shown and measured: a node joins, one drains, one dies whole, training goes on.

    python examples/demo/demo.py

The last line is one JSON object with what was measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table
from screen import Screen

from elasticps.testing import LocalCluster

HERE = Path(__file__).resolve().parent
FIRST_ROUNDS = 40
LEAST_TRAINING_S = 22.0
STARTUPS = 2.2
FEWEST_ROUNDS, MOST_ROUNDS = 450, 5000
BLOCK_BYTES = 16 * 1024
POLL_S = 0.25
INTERRUPTED = 130
MINIMUM_ACCURACY = 0.96
LARGEST_DIFFERENCE = 1e-5

Status = dict[str, Any]


class DemoError(Exception):
    """The story could not be told to its end."""


class Demo:
    """Drives one local cluster through the story and keeps what it sees."""

    def __init__(self, cluster: LocalCluster, screen: Screen, report: Path, started: float) -> None:
        self.status: Status = {}
        self.nodes_peak = 0
        self.leaders: list[str] = []
        self._cluster = cluster
        self._screen = screen
        self._report = report
        self._seen = asyncio.Condition()
        self._rounds = MOST_ROUNDS
        self._started = started

    @property
    def job(self) -> Status:
        jobs = self.status.get("jobs")
        return jobs[0] if jobs else {}

    async def watch(self) -> None:
        """Poll the API of whichever daemon lives, and count leaders as they come."""
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    url = f"{self._cluster.api}/api/v1/status"
                    async with session.get(url) as answer:
                        self._note(await answer.json())
                except aiohttp.ClientError as error:
                    self._screen.say(f"a daemon did not answer: {error}")
                async with self._seen:
                    self._seen.notify_all()
                await asyncio.sleep(POLL_S)

    def _note(self, status: Status) -> None:
        self.status = status
        self.nodes_peak = max(self.nodes_peak, len(status["nodes"]))
        leader = status["leader"]
        if leader is not None and leader not in self.leaders[-1:]:
            self.leaders.append(leader)
        self._screen.update(status)

    async def until(self, what: str, reached: Callable[[], bool]) -> None:
        """Wait for a condition on the status. Raises when the job ends before it is met."""

        def over() -> bool:
            return reached() or self.job.get("state") in ("SUCCEEDED", "FAILED", "CANCELLED")

        async with self._seen:
            await self._seen.wait_for(over)
        if not reached():
            raise DemoError(f"the job ended before {what}: {self.job.get('reason')}")

    def progress(self) -> float:
        return self.rounds_done() / self._rounds

    def rounds_done(self) -> int:
        return self.job.get("round") or 0

    async def story(self) -> None:
        say = self._screen.say
        await self._submit()
        await self._decide_rounds()
        await self.until("a node could join", lambda: self.progress() >= 0.03)

        say("a fourth node starts")
        joined = await self._cluster.add_node()
        await self.until("the new node took part", lambda: self._takes_part(joined))
        say(f"{joined} has joined: {self._blocks(joined)} blocks and a worker, live")

        leader = self.status["leader"]
        await self.until("half of the training", lambda: self.progress() >= 0.5)
        drained = next(name for name in self._cluster.nodes if name not in (leader, joined))
        say(f"elasticps drain {drained}")
        await self._elasticps("drain", drained)
        code = await self._cluster.wait(drained)
        say(f"{drained} has drained and exited with code {code}")
        if code != 0:
            raise DemoError(f"the drained node exited with code {code}")

        await self.until("every block had its copies", self._is_replicated)
        leader = self.status["leader"]
        blocks, killed_at = self._blocks(leader), self.rounds_done()
        self._cluster.kill(leader)
        say(
            f"{leader} was killed at round {killed_at}: the leader, {blocks} blocks that it led,"
            " and a worker, all with SIGKILL"
        )
        await self._cluster.wait(leader)
        await self.until("going on", lambda: self.rounds_done() > killed_at + 1)
        say(f"the job went on: backups lead the {blocks} blocks, nothing acknowledged is lost")
        await self.until("a new leader", lambda: self.status["leader"] not in (None, leader))
        say(f"{self.status['leader']} leads")
        await self.until("two copies again", self._is_replicated)
        say("every block has two copies again")
        await self.until("the end", lambda: self.job["state"] == "SUCCEEDED")
        say("training is complete")

    async def _decide_rounds(self) -> None:
        """Train for about as long as the story takes, whatever the speed of this machine.

        What takes longest is that the fourth node starts, about as long as the first three took.
        """
        await self.until("training began", lambda: self.rounds_done() > 0)
        training_s = max(LEAST_TRAINING_S, STARTUPS * (time.monotonic() - self._started))
        first, started = self.rounds_done(), time.monotonic()
        await self.until("its speed was known", lambda: self.rounds_done() >= FIRST_ROUNDS)
        rate = (self.rounds_done() - first) / (time.monotonic() - started)
        self._rounds = round(min(max(rate * training_s, FEWEST_ROUNDS), MOST_ROUNDS))
        self._screen.total_rounds = self._rounds
        rounds = self._report / "rounds.new"
        rounds.write_text(str(self._rounds))
        rounds.rename(self._report / "rounds")
        self._screen.say(f"training will take {self._rounds} rounds")

    async def _submit(self) -> None:
        body = {
            "argv": [
                str(HERE / "training.py"),
                "--report",
                str(self._report),
            ],
            "cwd": str(HERE),
            "start_workers": len(self._cluster.nodes),
            "block_bytes": BLOCK_BYTES,
            "audit": True,
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._cluster.api}/api/v1/jobs", json=body) as answer,
        ):
            if answer.status != 201:
                raise DemoError(await answer.text())

    def _takes_part(self, node: str) -> bool:
        ranks = [row["rank"] for row in self.job["workers"] if row["node"] == node]
        moving = self.job["pending_moves"]
        return self._blocks(node) > 0 and moving == 0 and any(rank is not None for rank in ranks)

    def _is_replicated(self) -> bool:
        return self.job["under_replicated"] == 0 and self.job["pending_moves"] == 0

    def _blocks(self, node: str) -> int:
        return int(self.job["blocks_by_node"].get(node, 0))

    async def _elasticps(self, *arguments: str) -> None:
        """Run the command line as an operator would."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "elasticps",
            "--api",
            self._cluster.api,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise DemoError(f"elasticps {' '.join(arguments)}: {output.decode()}")


async def run() -> Status:
    """The whole demo. SIGTERM ends it as Ctrl-C does: everything is taken down."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="elasticps-demo-") as directory:
        report = Path(directory)
        with Screen() as screen:
            screen.say("starting etcd and three daemons")
            async with LocalCluster(nodes=3, lease_ttl_s=2) as cluster:
                screen.say(f"the cluster is up; its API is at {cluster.api}")
                demo = Demo(cluster, screen, report, started)
                watching = asyncio.create_task(demo.watch())
                try:
                    await demo.story()
                finally:
                    watching.cancel()
            screen.say("the same training in one process, without elasticps")
            await local_run(report)
        figures = collect(demo, report)
    figures["seconds"] = round(time.monotonic() - started, 1)
    return figures


async def local_run(report: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "training.py"),
        "--report",
        str(report),
        "--local",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if await process.wait() != 0:
        raise DemoError("the local run failed")


def collect(demo: Demo, report: Path) -> Status:
    elastic = json.loads((report / "elastic.json").read_text())
    local = json.loads((report / "local.json").read_text())
    movement, verdict = demo.job["movement"], demo.job["verdict"]
    state_factor = movement["snapshot_bytes"] / movement["value_bytes"]
    return {
        "accuracy": elastic["accuracy"],
        "local_accuracy": local["local_accuracy"],
        "max_param_diff": local["max_param_diff"],
        "compared_rounds": local["compared_rounds"],
        "rounds": elastic["rounds"],
        "nodes_peak": demo.nodes_peak,
        "leader_changes": len(demo.leaders) - 1,
        "blocks_moved": movement["blocks"],
        "bytes_moved": movement["snapshot_bytes"],
        "bytes_moved_minimum": round(movement["least_value_bytes"] * state_factor),
        "pushes_acknowledged": verdict["acknowledged"],
        "pushes_lost": verdict["lost"],
        "pushes_duplicated": verdict["duplicated"],
        "median_step_s": round(elastic["median_step_s"], 4),
        "longest_pause_s": round(elastic["longest_step_s"] - elastic["median_step_s"], 4),
    }


def failures(figures: Status) -> list[str]:
    """What the run promised and did not keep."""
    checks = {
        "accuracy": figures["accuracy"] >= MINIMUM_ACCURACY,
        "max_param_diff": figures["max_param_diff"] <= LARGEST_DIFFERENCE,
        "leader_changes": figures["leader_changes"] >= 1,
        "blocks_moved": figures["blocks_moved"] > 0,
        "pushes_acknowledged": figures["pushes_acknowledged"] > 0,
        "pushes_lost": figures["pushes_lost"] == 0,
        "pushes_duplicated": figures["pushes_duplicated"] == 0,
    }
    return [name for name, kept in checks.items() if not kept]


def main() -> int:
    try:
        figures = asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except DemoError as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1
    table = Table("measured by this run", "", title="elasticps demo", title_justify="left")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:.3g}" if isinstance(figure, float) else f"{figure:,}")
    Console().print(table)
    missed = failures(figures)
    if missed:
        print(f"not as promised: {', '.join(missed)}", file=sys.stderr)
    print(json.dumps(figures))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
