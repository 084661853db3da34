"""The next forward begins while values are on their way (``run.optimizer(overlap_forward=True)``).

``step()`` returns once the round is committed. Whoever takes a parameter out of its module from
then on, as each layer's forward does, waits for that parameter's values; so do the modules' own
``state_dict``, ``parameters`` and copies. What a script took out before the step is not guarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from elasticps.errors import UsageError

GROUPS = 16
"""Readings a step: a layer waits for those of its group, and each costs a call into the loop."""

Reader = Callable[[Sequence[int]], Future[None]]
Wait = Callable[[Future[None]], None]


class Arrivals:
    """Which parameters' values are still to come. On the script's threads.

    ``read`` begins to read parameters by their indices, ``wait`` waits for it and raises what it
    raised.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], read: Reader, wait: Wait) -> None:
        self._parameters = parameters
        self._read = read
        self._wait = wait
        self._groups = grouped([item.nbytes for item in parameters], GROUPS)
        self._coming: dict[int, Future[None]] = {}

    def expect(self) -> None:
        """New values are there to be read: begin, with the first layers'."""
        for group in self._groups:
            reading = self._read(group)
            self._coming.update((id(self._parameters[index]), reading) for index in group)

    def wait_for(self, parameter: object) -> None:
        """Wait until a parameter has its values, should it be one that waits for some."""
        if self._coming:
            reading = self._coming.get(id(parameter))
            if reading is not None:
                self._wait(reading)
                self._coming.pop(id(parameter), None)

    def wait(self) -> None:
        """Wait until all have theirs."""
        for reading in set(self._coming.values()):
            self._wait(reading)
        self._coming.clear()

    def guard(self, model: torch.nn.Module) -> None:
        """From now on a parameter that is taken out of a module of ``model`` has its values.

        Raises UsageError for a module that reads its parameters in other ways.
        """
        for name, module in model.named_modules():
            _check(name, module)
        for module in model.modules():
            own = module._parameters  # noqa: SLF001 - where a module keeps them
            if own:
                module._parameters = GuardedParameters(own, self)  # noqa: SLF001
                # Recurrent modules keep their weights in a list as well.
                module.register_forward_pre_hook(self._before_forward)

    def __reduce__(self) -> tuple[Any, ...]:
        """What a copy of the model has: nothing comes to it."""
        return _none, ()

    def _before_forward(self, module: torch.nn.Module, _: Any) -> None:
        for parameter in module._parameters.values():  # noqa: SLF001
            self.wait_for(parameter)


def _none() -> Arrivals:
    return Arrivals((), lambda _: Future(), Future.result)


class GuardedParameters(dict[str, Any]):
    """A module's parameters, which have their values when they are taken out."""

    def __init__(self, parameters: Mapping[str, Any], arrivals: Arrivals) -> None:
        super().__init__(parameters)
        self._arrivals = arrivals

    def __getitem__(self, name: str) -> Any:
        parameter = super().__getitem__(name)
        self._arrivals.wait_for(parameter)
        return parameter

    def get(self, name: str, default: Any = None) -> Any:
        parameter = super().get(name, default)
        self._arrivals.wait_for(parameter)
        return parameter

    def pop(self, *arguments: Any) -> Any:
        parameter = super().pop(*arguments)
        self._arrivals.wait_for(parameter)
        return parameter

    def items(self) -> Any:
        self._wait_for_all()
        return super().items()

    def values(self) -> Any:
        self._wait_for_all()
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model is no worker's: its parameters are plain."""
        return dict, (self.copy(),)

    def _wait_for_all(self) -> None:
        for parameter in super().values():
            self._arrivals.wait_for(parameter)


def grouped(sizes: Iterable[int], most: int) -> list[tuple[int, ...]]:
    """The indices of ``sizes`` in at most ``most`` groups, in order, about equal in size."""
    rows = list(sizes)
    fair = max(1, sum(rows) / most)
    groups: list[list[int]] = []
    filled = 0
    for index, size in enumerate(rows):
        place = min(most - 1, int(filled / fair))
        if not groups or place >= len(groups):
            groups.append([])
        groups[-1].append(index)
        filled += size
    return [tuple(group) for group in groups]


def _check(name: str, module: torch.nn.Module) -> None:
    compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)
    if compiled or isinstance(module, torch.jit.ScriptModule):
        kind = type(module).__name__
        raise UsageError(
            f"module {name or 'model'} ({kind}) is compiled: its forward takes no notice of guards",
            field="overlap_forward",
            limit="modules that Python runs",
        )
