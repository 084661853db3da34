"""What a second replica costs: a synchronous step with R=2 beside one with R=1, in the same run.

Two shard server processes and one worker on this machine. Two jobs of the same dense model share
the servers, one keeps one replica of each block and the other two; the worker takes a step in each
by turns (push every block, vote, pull every block), so that a busy machine slows both. Prints a
table, and one JSON object on the last line. See ``python benchmarks/replication.py --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import uvloop
from torch import nn

from elasticps.core.blocks import LEDGER_BYTES, Model, partition
from elasticps.core.ids import JobKey, JobName, PlanEpoch, ServerId, WorkerId, node_of
from elasticps.core.placement import Site
from elasticps.core.plan import Entry
from elasticps.core.planner import first_plan, next_plan
from elasticps.core.records import CaughtUpRow, ServerRecord
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection
from elasticps.wire.control import ControlEnd, tell
from elasticps.wire.control_messages import (
    AliveWorkers,
    Control,
    JobInfo,
    PlanRow,
    PlanUpdate,
    Promises,
    ServerHello,
    Servers,
    ServeUntil,
    Stop,
)
from elasticps.wire.listener import listen
from elasticps.worker.agent import Agent
from elasticps.worker.client import Client
from elasticps.worker.exchange import Exchange
from elasticps.worker.parameters import describe, memory_of

CLUSTER = "benchmark"
LEASE_S = 3600.0
SERVERS = 2
WORKER = WorkerId(1)
LOOPBACK_BYTES = Path("/sys/class/net/lo/statistics/tx_bytes")


class StandInAgent(Agent):
    """The worker's agent, told by this program what a daemon would tell it."""

    def hear(self, message: Control) -> None:
        self._on_message(cast("Connection", None), message)


class Job:
    """One job: its plan, kept as a leader would keep it, and its only worker."""

    def __init__(self, key: int, replicas: int, model: Model, parameters: Sequence[nn.Parameter]):
        self.replicas = replicas
        self.info = JobInfo(
            job=JobKey(key),
            name=JobName(f"r{replicas}"),
            start_workers=1,
            strategy="data-parallel",
            model=model,
        )
        self.promises: dict[ServerId, tuple[CaughtUpRow, ...]] = {}
        self.entries: list[Entry] = []
        self._sizes = [LEDGER_BYTES, *(block.nbytes for block in partition(model))]
        self._epoch = 0
        self.agent = StandInAgent()
        self.client = Client(self.agent, CLUSTER, self.info.job, WORKER)
        self.exchange = Exchange(self.client, self.info, model, memory_of(model, parameters))

    def plan(self, servers: Sequence[ServerId]) -> PlanUpdate | None:
        """The plan's next step, None where there is nothing to change."""
        sites = [Site(server=name, node=node_of(name)) for name in servers]
        if self.entries:
            promises = [row for rows in self.promises.values() for row in rows]
            changed = next_plan(
                self._sizes, self.entries, sites, set(servers), promises, self.replicas
            ).changed
        else:
            changed = first_plan(self._sizes, sites, self.replicas)
            self.entries = list(changed)
        if not changed:
            return None
        self._epoch += 1
        for entry in changed:
            self.entries[entry.block] = replace(entry, epoch=PlanEpoch(self._epoch))
        rows = (
            PlanRow(
                entry.block, entry.primary, entry.in_sync, entry.learners, entry.epoch, entry.fresh
            )
            for entry in self.entries
        )
        return PlanUpdate(self.info.job, tuple(rows))

    @property
    def is_replicated(self) -> bool:
        return all(len(entry.holders) == self.replicas for entry in self.entries)

    async def step(self) -> None:
        self.exchange.begin()
        await self.exchange.round()

    async def aclose(self) -> None:
        await self.exchange.aclose()
        await self.client.aclose()


class Cluster:
    """The servers' control channel, with this program in the daemons' and the leader's place."""

    def __init__(self, jobs: Sequence[Job], *, local: bool) -> None:
        self.settled = asyncio.Event()
        self._jobs = {job.info.job: job for job in jobs}
        self._servers: dict[Connection, ServerRecord] = {}
        self._local = local

    def on_message(self, conn: Connection, message: Control) -> None:
        match message:
            case ServerHello(record=record):
                self._servers[conn] = record
                if len(self._servers) == SERVERS:
                    self._begin()
            case Promises(job=key, rows=rows):
                job = self._jobs[key]
                job.promises[self._servers[conn].server] = rows
                self._lead(job)

    def on_closed(self, conn: Connection) -> None:
        self._servers.pop(conn, None)

    def _begin(self) -> None:
        records = tuple(self._servers.values())
        local = frozenset(record.server for record in records) if self._local else frozenset()
        self._tell_all(ServeUntil(time.monotonic() + LEASE_S))
        self._tell_all(Servers(records, local))
        for job in self._jobs.values():
            job.agent.hear(Servers(records, local))
            job.agent.hear(job.info)
            self._tell_all(job.info)
            self._tell_all(AliveWorkers(job.info.job, (WORKER,), 1))
            self._lead(job)

    def _lead(self, job: Job) -> None:
        names = [record.server for record in self._servers.values()]
        while (update := job.plan(names)) is not None:
            self._tell_all(update)
            job.agent.hear(update)
        if all(each.is_replicated for each in self._jobs.values() if each.entries):
            self.settled.set()

    def _tell_all(self, message: Control) -> None:
        for conn in self._servers:
            tell(conn, message)

    def stop(self) -> None:
        self._tell_all(Stop("measured"))


@contextlib.asynccontextmanager
async def servers(cluster: Cluster) -> AsyncIterator[None]:
    """Real shard server processes that take their orders from ``cluster``."""
    with tempfile.TemporaryDirectory() as directory:
        control = Address.unix(Path(directory) / "control.sock")
        end = ControlEnd(cluster.on_message, cluster.on_closed)
        async with listen(control, lambda _: end):
            processes = [
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "elasticps.server"),
                    *("--control", str(control), "--cluster", CLUSTER, "--node", f"n{number}"),
                    *("--tcp", str(Address.tcp("127.0.0.1", 0))),
                    *("--unix", str(Address.unix(Path(directory) / f"{number}.sock"))),
                    stderr=asyncio.subprocess.DEVNULL,
                )
                for number in range(SERVERS)
            ]
            try:
                yield
            finally:
                cluster.stop()
                for process in processes:
                    await process.wait()


def dense_model(megabytes: int, block_bytes: int) -> tuple[Model, list[nn.Parameter]]:
    parameter = nn.Parameter(torch.zeros(megabytes << 18))
    parameter.grad = torch.full_like(parameter, 1e-3)
    groups = torch.optim.SGD([parameter], lr=0.1).param_groups
    model = describe(
        [("dense", parameter)],
        groups,
        optimizer="sgd",
        options={"lr": 0.1},
        elementwise=True,
        block_bytes=block_bytes,
    )
    return model, [parameter]


def loopback_bytes() -> int:
    return int(LOOPBACK_BYTES.read_text())


async def timed(job: Job) -> tuple[float, int]:
    """Seconds of one step, and the bytes that crossed loopback in it."""
    before, start = loopback_bytes(), time.perf_counter()
    await job.step()
    return time.perf_counter() - start, loopback_bytes() - before


async def measure(options: argparse.Namespace, *, local: bool) -> dict[str, float]:
    jobs = [
        Job(replicas, replicas, *dense_model(options.megabytes, options.block_bytes))
        for replicas in (1, 2)
    ]
    cluster = Cluster(jobs, local=local)
    async with servers(cluster), contextlib.AsyncExitStack() as stack:
        for job in jobs:
            stack.push_async_callback(job.aclose)
            await job.exchange.join()
        await cluster.settled.wait()
        for job in jobs:
            await job.step()  # warms up
        pairs = [[await timed(job) for job in jobs] for _ in range(options.steps)]
    one, two = zip(*pairs, strict=True)
    ratios = [second[0] / first[0] for first, second in pairs]
    return {
        "r1_step_ms": statistics.median(seconds for seconds, _ in one) * 1e3,
        "r2_step_ms": statistics.median(seconds for seconds, _ in two) * 1e3,
        "ratio": statistics.median(ratios),
        "r1_wire_mb": statistics.median(count for _, count in one) / 1e6,
        "r2_wire_mb": statistics.median(count for _, count in two) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64, help="size of the model")
    parser.add_argument("--block-bytes", type=int, default=4 << 20, help="bytes of a block")
    parser.add_argument("--steps", type=int, default=30, help="steps of each job")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':6}{'R=1':>12}{'R=2':>12}{'ratio':>8}{'R=1 wire':>12}{'R=2 wire':>12}")
    results = {}
    for name, local in {"tcp": False, "unix": True}.items():
        found = results[name] = uvloop.run(measure(options, local=local))
        print(
            f"{name:6}{found['r1_step_ms']:9.1f} ms{found['r2_step_ms']:9.1f} ms"
            f"{found['ratio']:8.2f}{found['r1_wire_mb']:9.1f} MB{found['r2_wire_mb']:9.1f} MB"
        )
    load = {"megabytes": options.megabytes, "block_bytes": options.block_bytes}
    print(json.dumps({"benchmark": "replication", "load": load, "results": results}))


if __name__ == "__main__":
    main()
