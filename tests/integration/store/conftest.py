"""The etcd servers that the store's tests run against."""

from __future__ import annotations

from tests.support.etcd import etcd_cluster, etcd_server, shared_etcd, started_members, store

__all__ = ["etcd_cluster", "etcd_server", "shared_etcd", "started_members", "store"]
