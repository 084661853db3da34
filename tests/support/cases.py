"""Which cases of a test `make test` runs, and which are `make test-long`'s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def short_are(*short: tuple[Any, ...], of: Iterable[tuple[Any, ...]]) -> list[Any]:
    """All cases for ``parametrize``, each but the ``short`` ones marked as long."""
    cases = list(of)
    assert set(short) <= set(cases)
    return [
        case if case in short else pytest.param(*case, marks=pytest.mark.long) for case in cases
    ]
