"""elasticps: an elastic parameter server for PyTorch.

This is the whole public surface; everything else may change without notice. Names load on first
use, so that the command line and the daemon need not import torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elasticps.api.optimizer import Optimizer as Optimizer
    from elasticps.api.optimizer import TorchOptimizer as TorchOptimizer
    from elasticps.api.strategy import Pending as Pending
    from elasticps.api.strategy import ServedOptimizer as ServedOptimizer
    from elasticps.api.strategy import Strategy as Strategy
    from elasticps.api.strategy import Worker as Worker
    from elasticps.errors import BlockUnavailable as BlockUnavailable
    from elasticps.errors import CheckpointError as CheckpointError
    from elasticps.errors import ElasticError as ElasticError
    from elasticps.errors import JobFailed as JobFailed
    from elasticps.errors import PluginError as PluginError
    from elasticps.errors import UsageError as UsageError
    from elasticps.worker.data import sample_order as sample_order
    from elasticps.worker.run import Run as Run
    from elasticps.worker.run import WorkerRetired as WorkerRetired
    from elasticps.worker.run import join as join

__version__ = version("elasticps")

_HOMES = {
    "BlockUnavailable": "elasticps.errors",
    "CheckpointError": "elasticps.errors",
    "ElasticError": "elasticps.errors",
    "JobFailed": "elasticps.errors",
    "Optimizer": "elasticps.api.optimizer",
    "Pending": "elasticps.api.strategy",
    "PluginError": "elasticps.errors",
    "Run": "elasticps.worker.run",
    "ServedOptimizer": "elasticps.api.strategy",
    "Strategy": "elasticps.api.strategy",
    "TorchOptimizer": "elasticps.api.optimizer",
    "UsageError": "elasticps.errors",
    "Worker": "elasticps.api.strategy",
    "WorkerRetired": "elasticps.worker.run",
    "join": "elasticps.worker.run",
    "sample_order": "elasticps.worker.data",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'elasticps' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
