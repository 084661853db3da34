"""All shard servers of a node: one by default, more where one core cannot serve the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from elasticps.core.records import ServerEnd, ServerRecord
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.cores import numa_nodes, pinned, threads_for
from elasticps.daemon.shard_server import ShardServerChild
from elasticps.daemon.supervisor import Supervisor
from elasticps.wire.address import Address


class ShardServers:
    """``children`` by their names. ``on_change`` is told when one listens, or is gone."""

    def __init__(
        self, config: DaemonConfig, control: Address, on_change: Callable[[], None]
    ) -> None:
        count, nodes = config.shard_servers, numa_nodes()
        threads = config.threads_per_server or threads_for(count, nodes)
        self.children = {
            child.name: child
            for number, cores in enumerate(pinned(count, nodes))
            for child in (ShardServerChild(config, control, on_change, number, cores, threads),)
        }

    @property
    def records(self) -> tuple[ServerRecord, ...]:
        """Those that live."""
        return tuple(child.record for child in self.children.values() if child.record is not None)

    @property
    def ends(self) -> tuple[ServerEnd, ...]:
        """The newest of each that ended within a plugin."""
        return tuple(child.end for child in self.children.values() if child.end is not None)

    def start(self, supervisor: Supervisor, tasks: asyncio.TaskGroup) -> None:
        """Start all, and look after them in ``tasks``."""
        for child in self.children.values():
            child.start(supervisor)
            tasks.create_task(child.end_when_stuck(supervisor), name=f"stuck {child.name}")

    async def listening(self) -> None:
        """Wait for the first life of each to listen. Raises ElasticError when one exits instead."""
        for child in self.children.values():
            await child.listening()
