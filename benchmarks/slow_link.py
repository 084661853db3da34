"""A local cluster over a link of a given rate: the worker on one node, the blocks on another.

Network namespaces joined by veth pairs, each end shaped by ``tc``'s token bucket; needs root,
iproute2 and the tests' ``tests.chaos.network``. The process must be inside (``enter``) by then.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from elasticps.daemon.local_cluster import LocalCluster, Place
from elasticps.store import EmbeddedEtcd, StoreConfig
from tests.chaos.links import Links
from tests.chaos.network import Network, can_be_made, enter, is_inside

__all__ = ["can_be_made", "enter", "is_inside", "linked_cluster"]

WORKER, SERVER = "n1", "n2"
WEIGHT = {WORKER: "0.0001", SERVER: "1000"}
"""As good as all blocks are led where the worker is not."""


@asynccontextmanager
async def linked_cluster(rate: str, lease_ttl_s: int) -> AsyncIterator[LocalCluster]:
    network, ways = Network(), dict[str, Links]()

    def place(node: str) -> Place:
        return Place(
            host=network.host(node),
            prefix=network.prefix(node),
            options=(
                *("--etcd", ways[node].endpoints, "--weight", WEIGHT[node]),
                "--allow-insecure-network",
            ),
        )

    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(EmbeddedEtcd())
        port = int(etcd.endpoint.rpartition(":")[2])
        for node in WEIGHT:
            network.add(node)
            links = Links(network.gateway(node), (port,))
            ways[node] = await stack.enter_async_context(links)
            stack.enter_context(network.slow(node, rate))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="link-")))
        yield await stack.enter_async_context(
            LocalCluster(
                nodes=len(WEIGHT),
                etcd=StoreConfig(endpoints=(etcd.endpoint,)),
                directory=directory,
                lease_ttl_s=lease_ttl_s,
                place=place,
            )
        )
