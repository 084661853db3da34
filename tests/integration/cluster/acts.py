"""The cluster and its jobs as the tests see them: acts, looks, and waits on conditions."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from elasticps.cli import answers
from elasticps.cli.client import Api
from elasticps.core.records import NodeRecord, decode
from elasticps.testing import LocalCluster

SCRIPTS = Path(__file__).parent / "scripts"
WAIT_S = 60.0
LOOK_S = 0.1

Found = TypeVar("Found")


class Cluster:
    """A local cluster with eyes and hands. Made by ``started``."""

    def __init__(self, local: LocalCluster, directory: Path) -> None:
        self.local = local
        self.directory = directory
        self._paused: set[str] = set()
        self._jobs = 0

    # -- looking --------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The API of a daemon that can answer."""
        for name, node in self.local.nodes.items():
            if node.http and node.process.returncode is None and name not in self._paused:
                return node.http
        raise AssertionError("no daemon lives")

    def api(self) -> Api:
        """To be entered with ``async with``."""
        return Api(self.url)

    async def status(self) -> answers.Status:
        async with self.api() as api:
            return await api.status()

    async def node(self, name: str) -> answers.Node | None:
        return next((node for node in (await self.status()).nodes if node.node == name), None)

    async def shard_server_pid(self, node: str) -> int:
        def living(status: answers.Status) -> int | None:
            rows = [row for each in status.nodes if each.node == node for row in each.children]
            return next((row.pid for row in rows if row.name == "shard-server"), None)

        return await self.until(living, f"{node} has a shard server")

    async def record(self, node: str) -> NodeRecord | None:
        """The node's registration in etcd."""
        key = self.local.keys.node(node)
        found = await self.local.store.get(key)
        return None if found is None else decode(found.value, NodeRecord, key)

    async def until(
        self, found: Callable[[answers.Status], Found], what: str, timeout_s: float = WAIT_S
    ) -> Found:
        """Look until ``found`` gives something true; fails, telling ``what``, after the limit."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = await self.status()
            result = found(status)
            if result:
                return result
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{status}"
            await asyncio.sleep(LOOK_S)

    def log_of(self, node: str) -> str:
        return self.local.nodes[node].log.read_text(errors="replace")

    async def get(self, path: str, url: str | None = None) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(url or self.url) as session,
            session.get(path) as response,
        ):
            return dict(await response.json())

    # -- acting ---------------------------------------------------------------------------------

    async def submit(self, script: Path, *arguments: object, **wishes: Any) -> Job:
        """Hand in a job that runs ``script``; it begins with as many workers as it may have."""
        wishes.setdefault("start_workers", wishes.get("max_workers", 1))
        submission = answers.Submission(
            argv=(str(script), *map(str, arguments)), cwd=str(self.directory), **wishes
        )
        async with self.api() as api:
            return Job(self, (await api.submit(submission)).job, self.directory)

    def job(self, name: str) -> Job:
        """One that is there already."""
        return Job(self, name, self.directory)

    async def train(self, *options: object, **wishes: Any) -> Training:
        """Hand in scripts/train.py, which goes on until ``Training.finish``."""
        self._jobs += 1
        directory = self.directory / f"training-{self._jobs}"
        directory.mkdir()
        goal = directory / "goal"
        wishes.setdefault("block_bytes", 4096)
        job = await self.submit(SCRIPTS / "train.py", goal, directory, *options, **wishes)
        return Training(self, job.name, directory)

    async def drain(self, node: str, *, stay: bool = False) -> None:
        async with self.api() as api:
            await api.drain(node, stay=stay)

    async def undrain(self, node: str) -> None:
        async with self.api() as api:
            await api.undrain(node)

    async def add_node(self, name: str | None = None) -> str:
        return await self.local.add_node(name)

    def signal(self, node: str, number: signal.Signals) -> None:
        self.local.nodes[node].process.send_signal(number)

    async def exit_code(self, node: str) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.local.wait(node)

    @asynccontextmanager
    async def paused(self, node: str) -> AsyncIterator[None]:
        """The daemon alone is stopped by SIGSTOP; its children go on."""
        self._paused.add(node)
        self.signal(node, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(node, signal.SIGCONT)
            self._paused.discard(node)


class Job:
    """One job of the cluster."""

    def __init__(self, cluster: Cluster, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.cluster = cluster

    async def look(self) -> answers.Job:
        async with self.cluster.api() as api:
            return await api.job(self.name)

    async def until(self, found: Callable[[answers.Job], Found], what: str) -> Found:
        def in_status(status: answers.Status) -> Found:
            return found(next(job for job in status.jobs if job.job == self.name))

        return await self.cluster.until(in_status, f"{self.name} {what}")

    async def ended(self) -> answers.Job:
        return await self.until(lambda job: job if job.final else None, "ends")

    async def goes_on(self, rounds: int = 10) -> int:
        """Wait for as many more rounds; the round it is at then."""
        at = await self.until(lambda job: job.round, "trains")
        return await self.until(
            lambda job: job.round if job.round and job.round >= at + rounds else None,
            f"goes on from round {at}",
        )

    async def is_trained_by(self, *nodes: str) -> answers.Job:
        """Wait until the workers that take part in rounds are one on each of ``nodes``."""

        def trained(job: answers.Job) -> answers.Job | None:
            running = [worker for worker in job.workers if worker.state == "running"]
            taking_part = sorted(worker.node for worker in running if worker.round)
            return job if len(running) == len(nodes) and taking_part == sorted(nodes) else None

        return await self.until(trained, f"is trained by {nodes}")

    async def lies_on(self, *nodes: str) -> answers.Job:
        """Wait until exactly ``nodes`` lead blocks of it and nothing moves."""

        def placed(job: answers.Job) -> answers.Job | None:
            return job if sorted(job.blocks_by_node) == sorted(nodes) and settled(job) else None

        return await self.until(placed, f"lies on {nodes}")

    async def lines(self) -> list[str]:
        async with self.cluster.api() as api:
            return [line.text async for line in api.lines(self.name, follow=False)]

    async def prints(self, text: str) -> None:
        """Wait until a worker has written a line of this text."""
        deadline = time.monotonic() + WAIT_S
        while text not in await self.lines():
            assert time.monotonic() < deadline, f"{self.name} did not print {text!r}"
            await asyncio.sleep(LOOK_S)

    async def worker_pids(self, *nodes: str) -> list[int]:
        """The processes of its workers that live now, on ``nodes`` or anywhere."""
        return [
            child.pid
            for node in (await self.cluster.status()).nodes
            for child in node.children
            if child.name.startswith(f"{self.name}.") and child.pid
            if not nodes or node.node in nodes
        ]

    async def is_left_by_all(self) -> None:
        """Wait until no process of it lives."""
        deadline = time.monotonic() + WAIT_S
        while pids := await self.worker_pids():
            assert time.monotonic() < deadline, f"{self.name} has processes: {pids}"
            await asyncio.sleep(LOOK_S)

    async def is_cleared(self) -> None:
        """Wait until the leader has taken out of etcd what an ended job does not need."""
        keys, deadline = self.cluster.local.keys, time.monotonic() + WAIT_S
        kept = {keys.job_spec(self.name), keys.job_status(self.name), keys.job_model(self.name)}
        while True:
            listing = await self.cluster.local.store.list(keys.job(self.name))
            found = {item.key for item in listing.items}
            if found <= kept:
                return
            assert time.monotonic() < deadline, f"{found - kept} stay in etcd"
            await asyncio.sleep(LOOK_S)

    async def cancel(self) -> None:
        async with self.cluster.api() as api:
            await api.cancel(self.name)


class Training(Job):
    """scripts/train.py."""

    async def finish(self, after: int = 15) -> answers.Job:
        """Have it end at a round that is ``after`` rounds away, and wait for its end."""
        at = await self.until(lambda job: job.round, "trains")
        goal = self.directory / "goal"
        fresh = goal.with_suffix(".new")
        fresh.write_text(str(at + after))
        fresh.rename(goal)
        return await self.ended()

    @property
    def goal(self) -> int:
        return int((self.directory / "goal").read_text())

    def results(self) -> dict[str, dict[str, Any]]:
        """What each node's worker wrote at its end: the round and all parameters."""
        return {path.stem: json.loads(path.read_text()) for path in self.directory.glob("*.json")}


def settled(job: answers.Job) -> bool:
    return not job.pending_moves and sum(job.blocks_by_node.values()) == job.blocks


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def started(nodes: int, directory: Path, **settings: Any) -> AsyncIterator[Cluster]:
    """A cluster whose logs stay in ``directory``."""
    async with LocalCluster(nodes=nodes, directory=directory / "cluster", **settings) as local:
        yield Cluster(local, directory)


def notes(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """What each life of a worker has noted; the last line of a killed one may be half a line."""
    found = {}
    for path in directory.glob("*.steps"):
        lines = path.read_text().splitlines()
        found[path.stem] = [json.loads(line) for line in lines if line.endswith("}")]
    return found
