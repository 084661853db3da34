"""The Lion optimizer as an elasticps plugin, named by this package's entry point."""

from __future__ import annotations

from elasticps import TorchOptimizer
from elasticps_lion.lion import Lion

plugin = TorchOptimizer(Lion)

__all__ = ["Lion", "plugin"]
