"""The etcd servers and packages that the doctor's tests look at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.distributions import install
from tests.support.etcd import etcd_cluster, etcd_server, shared_etcd, started_members


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: sockets lie in it, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="elasticps-") as name:
        yield Path(name)


__all__ = ["etcd_cluster", "etcd_server", "install", "shared_etcd", "started_members"]
