"""The dct codec as an elasticps plugin, named by this package's entry point."""

from __future__ import annotations

from elasticps_dct.codec import Dct

__all__ = ["Dct"]
