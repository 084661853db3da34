"""Torch's compiler, left out of memory until somebody compiles.

At every start and step torch's optimizers load it, for calls that do nothing outside of a compiled
function; it takes as long to load as torch itself. Whoever wants more of it than those calls gets
the real one.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"
_KEPT = "__dynamo_disable"
"""Where ``torch._compile`` keeps what ``disable`` gave it for a function."""


def leave_compiler_unloaded() -> None:
    """Put a stand-in in the compiler's place, for this process; nothing where it is loaded."""
    if COMPILER not in sys.modules:
        stand_in = sys.modules[COMPILER] = _Unloaded(COMPILER)
        setattr(torch, COMPILER.rpartition(".")[2], stand_in)  # as an import of it does


class _Unloaded(ModuleType):
    """Stands in for ``torch._dynamo``, and loads it for whatever it does not answer itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._passed: list[Any] = []
        self._leaving = threading.Lock()

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Nothing is being compiled."""

    def disable(self, fn: Any = None, *args: Any, **options: Any) -> Any:
        """Torch's own functions as they are; the real one marks them once it is loaded."""
        if fn is None or not str(getattr(fn, "__module__", "")).startswith("torch."):
            disable: Callable[..., Any] = self._load().disable
            return disable(fn, *args, **options)
        self._passed.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        # Who goes through all modules asks for a __file__, say; a submodule's import for this one.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"module {COMPILER!r} is not loaded, and has no {name!r}")
        return getattr(self._load(), name)

    def _load(self) -> ModuleType:
        with self._leaving:  # and not while it loads, which takes locks of its own
            if sys.modules.get(COMPILER) is self:
                del sys.modules[COMPILER]
                for fn in self._passed:
                    if hasattr(fn, _KEPT):
                        delattr(fn, _KEPT)
        return importlib.import_module(COMPILER)
