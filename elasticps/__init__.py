"""elasticps: an elastic parameter server for PyTorch.

This is the whole public surface; everything else may change without notice. Names load on first
use, so that the command line and the daemon need not import torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elasticps.api.codec import Codec as Codec
    from elasticps.api.codec import Reducer as Reducer
    from elasticps.api.data_policy import DataPolicy as DataPolicy
    from elasticps.api.data_policy import Lending as Lending
    from elasticps.api.data_policy import Loans as Loans
    from elasticps.api.data_policy import Range as Range
    from elasticps.api.optimizer import Optimizer as Optimizer
    from elasticps.api.optimizer import TorchOptimizer as TorchOptimizer
    from elasticps.api.pipeline import Pipeline as Pipeline
    from elasticps.api.placement import Load as Load
    from elasticps.api.placement import PlacedBlock as PlacedBlock
    from elasticps.api.placement import Placement as Placement
    from elasticps.api.placement import Proposal as Proposal
    from elasticps.api.placement import Site as Site
    from elasticps.api.placement import Situation as Situation
    from elasticps.api.strategy import Pending as Pending
    from elasticps.api.strategy import ServedOptimizer as ServedOptimizer
    from elasticps.api.strategy import Strategy as Strategy
    from elasticps.api.strategy import Worker as Worker
    from elasticps.errors import BlockUnavailable as BlockUnavailable
    from elasticps.errors import CheckpointError as CheckpointError
    from elasticps.errors import CodecError as CodecError
    from elasticps.errors import ElasticError as ElasticError
    from elasticps.errors import JobFailed as JobFailed
    from elasticps.errors import PluginError as PluginError
    from elasticps.errors import UsageError as UsageError
    from elasticps.worker.join import join as join
    from elasticps.worker.order import sample_order as sample_order
    from elasticps.worker.run import Run as Run
    from elasticps.worker.training import WorkerRetired as WorkerRetired

__version__ = version("elasticps")

_HOMES = {
    "BlockUnavailable": "elasticps.errors",
    "CheckpointError": "elasticps.errors",
    "Codec": "elasticps.api.codec",
    "CodecError": "elasticps.errors",
    "DataPolicy": "elasticps.api.data_policy",
    "ElasticError": "elasticps.errors",
    "JobFailed": "elasticps.errors",
    "Lending": "elasticps.api.data_policy",
    "Load": "elasticps.api.placement",
    "Loans": "elasticps.api.data_policy",
    "Optimizer": "elasticps.api.optimizer",
    "Pending": "elasticps.api.strategy",
    "Pipeline": "elasticps.api.pipeline",
    "PlacedBlock": "elasticps.api.placement",
    "Placement": "elasticps.api.placement",
    "PluginError": "elasticps.errors",
    "Proposal": "elasticps.api.placement",
    "Range": "elasticps.api.data_policy",
    "Reducer": "elasticps.api.codec",
    "Run": "elasticps.worker.run",
    "ServedOptimizer": "elasticps.api.strategy",
    "Site": "elasticps.api.placement",
    "Situation": "elasticps.api.placement",
    "Strategy": "elasticps.api.strategy",
    "TorchOptimizer": "elasticps.api.optimizer",
    "UsageError": "elasticps.errors",
    "Worker": "elasticps.api.strategy",
    "WorkerRetired": "elasticps.worker.training",
    "join": "elasticps.worker.join",
    "sample_order": "elasticps.worker.order",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'elasticps' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
