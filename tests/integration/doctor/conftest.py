"""The etcd servers and packages that the doctor's tests look at."""

from __future__ import annotations

from tests.support.distributions import install
from tests.support.etcd import etcd_cluster, etcd_server, shared_etcd, started_members

__all__ = ["etcd_cluster", "etcd_server", "install", "shared_etcd", "started_members"]
