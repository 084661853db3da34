"""The cluster that a command opens on this machine for its own work, and what may befall it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from elasticps.daemon.settings import split
from elasticps.errors import JobFailed

MAX_NODES = 64
MAX_WORKERS_PER_NODE = 64

Result = TypeVar("Result")


class Cluster(Protocol):
    """What a command needs of it: the URL of a daemon's API, and when all is lost."""

    @property
    def api(self) -> str: ...

    async def broken(self) -> str: ...


OpenCluster = Callable[[], AbstractAsyncContextManager[Cluster]]


def local_cluster(
    *, nodes: int, workers_per_node: int, etcd: str | None, keep_logs: Path | None
) -> OpenCluster:
    """What opens a cluster on this machine: ``etcd`` None starts one of its own with it."""

    def open_cluster() -> AbstractAsyncContextManager[Cluster]:
        from elasticps.daemon.local_cluster import LocalCluster
        from elasticps.store.config import StoreConfig

        return LocalCluster(
            nodes=nodes,
            workers_per_node=workers_per_node,
            etcd=StoreConfig(endpoints=split(etcd)) if etcd else None,
            directory=keep_logs.absolute() if keep_logs else None,
        )

    return open_cluster


async def while_whole(cluster: Cluster, work: Coroutine[Any, Any, Result], where: str) -> Result:
    """Do ``work``; raises JobFailed, naming ``where``, when the cluster breaks under it."""
    working = asyncio.create_task(work)
    breaking = asyncio.create_task(cluster.broken())
    try:
        await asyncio.wait({working, breaking}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise JobFailed(f"the cluster broke: {breaking.result()}", where=where)
    finally:
        for task in (working, breaking):
            task.cancel()
        await asyncio.wait({working, breaking})
