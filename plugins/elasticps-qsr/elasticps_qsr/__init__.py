"""The qsr strategy as an elasticps plugin, named by this package's entry point."""

from __future__ import annotations

from elasticps_qsr.strategy import QuadraticSynchronization

__all__ = ["QuadraticSynchronization"]
