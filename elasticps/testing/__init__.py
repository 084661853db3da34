"""What tests and demonstrations of elasticps itself, and of plugins, start from.

As a pytest plugin, ``-p elasticps.testing``, it runs the conformance kit (``kit``) against an
installed plugin. Names load on first use: the kit needs no cluster of processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elasticps.daemon.local_cluster import LocalCluster as LocalCluster

__all__ = ["LocalCluster"]

pytest_plugins = ["elasticps.testing.pytest_plugin"]


def __getattr__(name: str) -> Any:
    if name != "LocalCluster":
        raise AttributeError(f"module 'elasticps.testing' has no attribute {name!r}")
    from elasticps.daemon.local_cluster import LocalCluster

    return LocalCluster
