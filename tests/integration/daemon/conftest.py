"""Parts of a daemon on a real etcd, without the processes that it would start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from elasticps.store import Store
from tests.integration.daemon.mirror import Mirrored, mirrored
from tests.support.etcd import etcd_server, shared_etcd, store

__all__ = ["etcd_server", "shared_etcd", "store"]


@pytest_asyncio.fixture
async def cluster(store: Store) -> AsyncIterator[Mirrored]:
    """An empty cluster on the shared etcd, and a view that follows it."""
    async with mirrored(store) as cluster:
        yield cluster
