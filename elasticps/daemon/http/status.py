"""The cluster's state as JSON: what etcd says, and what each daemon alone knows of its node."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import aiohttp
import msgspec

from elasticps.core.ids import NodeId, node_of
from elasticps.core.jobs import attempts, short_of_copies
from elasticps.core.records import (
    Attempts,
    JobSpec,
    JobStatus,
    LivingWorker,
    NodeRecord,
    WorkerRecord,
)
from elasticps.daemon.access import asking
from elasticps.daemon.block_map import BlockMap
from elasticps.daemon.http.checkpoints import newest_report
from elasticps.daemon.node import Node
from elasticps.daemon.view import JobView
from elasticps.wire.messages import Progress, ServerLoad

log = logging.getLogger(__name__)

LOCAL_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
ASKED_AT_ONCE = 32


class LocalWorker(msgspec.Struct, frozen=True, kw_only=True):
    uid: str
    progress: Progress | None


class ChildRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pid: int | None
    state: str
    restarts: int
    last_exit: str | None


class LocalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What only a node's own daemon knows: ``GET /api/v1/local``.

    ``foreign_values`` counts the keys and values in etcd that it could not read.
    """

    node: NodeId
    foreign_values: int
    load: ServerLoad | None
    children: tuple[ChildRow, ...]
    workers: tuple[LocalWorker, ...]


def local_status(node: Node) -> LocalStatus:
    load = node.server.load
    children = tuple(
        ChildRow(
            name=child.name,
            pid=child.pid,
            state=child.state.value,
            restarts=child.restarts,
            last_exit=child.last_exit.reason if child.last_exit else None,
        )
        for child in node.supervisor.snapshot()
    )
    workers = tuple(
        LocalWorker(uid=life.uid, progress=life.progress) for life in node.workers.lives.values()
    )
    return LocalStatus(
        node=node.name,
        foreign_values=node.view.foreign_values,
        load=load and msgspec.structs.replace(load, hot=()),
        children=children,
        workers=workers,
    )


class ClusterStatus:
    """Builds the JSON documents of the API."""

    def __init__(self, node: Node, client: aiohttp.ClientSession, block_map: BlockMap) -> None:
        self._node = node
        self._client = client
        self._map = block_map

    async def encoded(self) -> bytes:
        """``cluster`` as JSON, on one line."""
        return msgspec.json.encode(await self.cluster())

    async def cluster(self) -> dict[str, Any]:
        locals_ = await self._locals()
        view = self._node.view
        return {
            "cluster": self._node.config.cluster,
            "version": version("elasticps"),
            "leader": view.leader,
            "nodes": [self._node_row(view.nodes[name], locals_) for name in sorted(view.nodes)],
            "jobs": [
                self._job_row(job, job.spec, locals_)
                for job in sorted(view.jobs.values(), key=lambda job: job.key)
                if job.spec is not None
            ],
        }

    async def nodes(self) -> list[dict[str, Any]]:
        locals_ = await self._locals()
        nodes = self._node.view.nodes
        return [self._node_row(nodes[name], locals_) for name in sorted(nodes)]

    async def node(self, name: NodeId) -> dict[str, Any]:
        record = self._node.view.nodes.get(name)
        if record is None:
            return {"node": name, "state": "gone"}
        return self._node_row(record, await self._locals())

    async def job(self, job: JobView) -> dict[str, Any]:
        assert job.spec is not None
        return self._job_row(job, job.spec, await self._locals())

    # -- asking the other daemons ---------------------------------------------------------------

    async def _locals(self) -> dict[NodeId, LocalStatus]:
        """Each reachable node's own word; a node that does not answer in a second is left out."""
        window = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(record: NodeRecord) -> LocalStatus | None:
            if record.node == self._node.name:
                return local_status(self._node)
            async with window:
                return await self._ask(record)

        records = list(self._node.view.nodes.values())
        answers = await asyncio.gather(*(ask(record) for record in records))
        return {answer.node: answer for answer in answers if answer is not None}

    async def _ask(self, record: NodeRecord) -> LocalStatus | None:
        try:
            url = f"{record.http}/api/v1/local"
            proof = asking(self._node.access, record)
            async with self._client.get(url, timeout=LOCAL_TIMEOUT, **proof) as response:
                return msgspec.json.decode(await response.read(), type=LocalStatus)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            log.info("node=%s does not answer: %s", record.node, error)
            return None

    # -- rows -----------------------------------------------------------------------------------

    def _node_row(self, record: NodeRecord, locals_: dict[NodeId, LocalStatus]) -> dict[str, Any]:
        view = self._node.view
        local = locals_.get(record.node)
        servers = {server.server for server in record.servers}
        leads, replicas = self._map.leads_and_holds(servers)
        state = "ready"
        if record.node in view.drains:
            state = "drained" if view.holds_nothing(record.node) else "draining"
        return {
            "node": record.node,
            "state": state,
            "leader": view.leader == record.node,
            "http": record.http,
            "incarnation": record.incarnation,
            "machine": record.machine,
            "zone": record.zone,
            "labels": record.labels,
            "weight": record.weight,
            "version": record.version,
            "leads": leads,
            "replicas": replicas,
            "bytes_held": local.load.bytes_held if local and local.load else 0,
            "workers": [
                life.uid
                for job in view.active_jobs
                for life in job.running
                if life.record.node == record.node
            ],
            "children": msgspec.to_builtins(local.children) if local else [],
            "reachable": local is not None,
        }

    def _job_row(
        self, job: JobView, spec: JobSpec, locals_: dict[NodeId, LocalStatus]
    ) -> dict[str, Any]:
        progress = {
            worker.uid: worker.progress
            for local in locals_.values()
            for worker in local.workers
            if worker.progress is not None and worker.uid in job.workers
        }
        newest = max(progress.values(), key=lambda item: (item.round, -item.rank), default=None)
        status = job.status
        leads = Counter(node_of(entry.primary) for entry in job.entries)
        alive = {server.server for server in self._node.view.servers}
        return {
            "job": job.name,
            "state": status.state.value if status else "PENDING",
            "reason": status.reason if status else _no_status(job),
            "script": spec.argv[0],
            "owner": spec.owner,
            "strategy": spec.strategy,
            "codec": spec.codec,
            "replicas": spec.replicas,
            "min_insync": spec.min_insync,
            "consistency": spec.consistency.value,
            "round": newest.round if newest else status and status.round,
            "metrics": _main_metrics(progress) or (status.metrics if status else {}),
            "step_s": newest.step_s if newest else None,
            **_traffic(job, progress),
            "workers": [_worker_row(life, progress.get(life.uid)) for life in _lives(job)],
            "blocks": len(job.sizes),
            "under_replicated": len(short_of_copies(job.entries, alive, spec.replicas)),
            "blocks_by_node": dict(sorted(leads.items())),
            "pending_moves": sum(bool(entry.learners) for entry in job.entries),
            "movement": msgspec.to_builtins(status.movement) if status else {},
            "verdict": {
                "acknowledged": status.verdict.acknowledged if status else 0,
                "lost": status.verdict.lost if status else 0,
                "duplicated": status.verdict.duplicated if status else 0,
                "workers": status.audited if status else 0,
                "unaudited": status.unaudited if status else 0,
            },
            "failure": msgspec.to_builtins(status.failure) if status else None,
            "checkpoint": msgspec.to_builtins(newest_report(progress.values())),
            "checkpoint_attempts": msgspec.to_builtins(_attempts(job, progress)),
            "submitted_unix": spec.submitted_unix,
            "ended_unix": status.ended_unix if status else None,
        }


def _no_status(job: JobView) -> str:
    unreadable = "its status in etcd cannot be read: it is left alone"
    return unreadable if "status" in job.damaged else "waiting for a leader"


def _lives(job: JobView) -> list[LivingWorker]:
    return sorted(job.workers.values(), key=lambda life: life.worker)


def _worker_row(life: LivingWorker, progress: Progress | None) -> dict[str, Any]:
    return {
        "uid": life.uid,
        "node": life.record.node,
        "state": life.record.state.value,
        "rank": progress.rank if progress else None,
        "round": progress.round if progress else None,
        "reason": life.record.reason,
    }


def _traffic(job: JobView, progress: dict[str, Progress]) -> dict[str, int]:
    """What all workers have sent so far, and the size of the gradients that they sent it for."""
    tallies = _tallies(job, progress)
    return {
        "pushed_bytes": sum(each.pushed_bytes for each in tallies),
        "gradient_bytes": sum(each.gradient_bytes for each in tallies),
    }


def _attempts(job: JobView, progress: dict[str, Progress]) -> Attempts:
    return attempts(each.checkpoint_attempts for each in _tallies(job, progress))


def _tallies(
    job: JobView, progress: dict[str, Progress]
) -> Sequence[Progress | WorkerRecord | JobStatus]:
    """What counts for all of the job's workers, together."""
    if job.status is not None and job.status.state.final:
        return [job.status]  # its workers' records go with its end
    return [progress.get(life.uid, life.record) for life in _lives(job)]


def _main_metrics(progress: dict[str, Progress]) -> dict[str, float]:
    """The logged numbers of the lowest rank that logged any."""
    logged = [item for item in progress.values() if item.metrics]
    return min(logged, key=lambda item: item.rank).metrics if logged else {}
