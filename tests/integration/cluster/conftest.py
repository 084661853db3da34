"""A cluster for the tests that leave it as they found it, and one for those that break things."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from elasticps.store import EmbeddedEtcd, StoreConfig
from tests.integration.cluster.acts import Cluster, started

Script = Callable[[str], Path]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """n1 and n2: give them jobs, but kill nothing that does not come back."""
    async with started(2, tmp_path_factory.mktemp("shared-cluster")) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def etcd() -> AsyncIterator[EmbeddedEtcd]:
    """The etcd of ``fragile_cluster``."""
    async with EmbeddedEtcd() as etcd:
        yield etcd


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def fragile_cluster(
    etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """n1 and n2, which take an hour to drain where nothing tells them otherwise.

    It is test_faults.py's, which ends both.
    """
    config = StoreConfig(endpoints=(etcd.endpoint,))
    directory = tmp_path_factory.mktemp("fragile-cluster")
    async with started(2, directory, etcd=config, drain_timeout_s=3600) as cluster:
        yield cluster


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """``script(text)``: a file that holds it."""

    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """n1, n2 and n3."""
    async with started(3, tmp_path_factory.mktemp("three-nodes")) as cluster:
        yield cluster
