"""The strategy that a job chose: what it raises is told of it, by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from elasticps.api.strategy import ServedOptimizer, Strategy, Worker
from elasticps.api.strategy_choice import load_strategy
from elasticps.errors import ElasticError, PluginError

if TYPE_CHECKING:
    import torch


class ChosenStrategy(Strategy):
    """Calls the plugin that ``text`` chooses.

    Our own errors come out as they are, any other as a PluginError.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._plugin = load_strategy(text)

    @property
    def wants_peers(self) -> bool:
        """The plugin's ``uses_peers``."""
        return self._plugin.uses_peers

    @property
    def wants_pipeline(self) -> bool:
        """The plugin's ``uses_pipeline``."""
        return self._plugin.uses_pipeline

    @property
    def steps_per_round(self) -> int:
        with self._named("steps_per_round"):
            span = self._plugin.steps_per_round
        if not (isinstance(span, int) and span >= 1):
            raise PluginError(
                f"steps_per_round is {span!r}", where=self._where, limit="a whole number from 1"
            )
        return span

    @property
    def is_published(self) -> bool:
        with self._named("is_published"):
            return self._plugin.is_published

    def served_optimizer(self, chosen: ServedOptimizer) -> ServedOptimizer:
        with self._named("served_optimizer()"):
            return self._plugin.served_optimizer(chosen)

    def served_optimizers(
        self, chosen: ServedOptimizer, names: Sequence[str]
    ) -> Mapping[str, ServedOptimizer]:
        with self._named("served_optimizers()"):
            served = dict(self._plugin.served_optimizers(chosen, names))
        for name in names:
            if not isinstance(served.get(name), ServedOptimizer):
                raise PluginError(
                    f"serves {name} by {served.get(name)!r}",
                    where=self._where,
                    field="served_optimizer",
                    limit="a ServedOptimizer",
                )
        return served

    def applied_at_once(self, names: Sequence[str]) -> Collection[str]:
        with self._named("applied_at_once()"):
            return self._plugin.applied_at_once(names)

    def begin(self, worker: Worker) -> None:
        with self._named("begin()"):
            self._plugin.begin(worker)

    def forward_backward(
        self, worker: Worker, inputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        with self._named("forward_backward()"):
            return self._plugin.forward_backward(worker, inputs, targets)

    def step(self, worker: Worker) -> None:
        with self._named("step()"):
            self._plugin.step(worker)

    def abstain(self, worker: Worker) -> None:
        with self._named("abstain()"):
            self._plugin.abstain(worker)

    def membership_changed(self, worker: Worker) -> None:
        with self._named("membership_changed()"):
            self._plugin.membership_changed(worker)

    def end(self, worker: Worker) -> None:
        with self._named("end()"):
            self._plugin.end(worker)

    @property
    def _where(self) -> str:
        return f"strategy {self._text}"

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except ElasticError:
            raise
        except Exception as error:  # a plugin may raise anything; its worker alone fails
            raise PluginError(
                f"{what} failed: {type(error).__name__}: {error}", where=self._where
            ) from error
