"""What a job's strategy answers is held against its contract, and a fault names the strategy."""

from __future__ import annotations

import pytest

from elasticps.api.chosen_strategy import ChosenStrategy
from elasticps.api.plugins import STRATEGIES
from elasticps.api.strategy import ServedOptimizer
from elasticps.errors import PluginError
from tests.support.distributions import Install, install

__all__ = ["install"]

SOURCE = """
    from elasticps import Strategy

    class Odd(Strategy):
        def step(self, worker): ...
        def served_optimizer(self, chosen):
            return None

    class Forgetful(Odd):
        def served_optimizers(self, chosen, names):
            return {name: chosen for name in names[1:]}
"""


@pytest.mark.parametrize("name", ["odd", "forgetful"])
def test_parameter_without_an_optimizer_is_told_with_the_strategy(
    install: Install, name: str
) -> None:
    entries = {"odd": "acme:Odd", "forgetful": "acme:Forgetful"}
    install("acme-odd", "acme", SOURCE, {STRATEGIES: entries})
    chosen = ServedOptimizer(name="sgd", options={"lr": 1.0})
    with pytest.raises(PluginError, match="serves first by None") as caught:
        ChosenStrategy(name).served_optimizers(chosen, ["first", "second"])
    assert caught.value.where == f"strategy {name}"
