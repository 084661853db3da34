"""Names that users look for and that no plugin can have, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REFUSED: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("elasticps.optimizers", "lbfgs"): (
            "one step of LBFGS evaluates the loss many times, each time with other parameters, and"
            " a round has one gradient"
        ),
        ("elasticps.optimizers", "sparseadam"): (
            "SparseAdam needs sparse gradients, and a push carries a dense one: use adam, and"
            " embeddings with sparse=False"
        ),
    }
)
"""By entry-point group and name. Who installs a plugin under such a name can use it."""
