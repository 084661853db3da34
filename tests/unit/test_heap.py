"""A shard server's threads share a heap, unless its environment says otherwise.

What that saves is what ``python -m benchmarks memory`` prints.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from elasticps.server import heap


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What a libc of the test's own is asked for."""
    asked: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda *wanted: asked.append(wanted))
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: libc)
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    return asked


def test_there_is_one_heap(asked: list[tuple[int, int]]) -> None:
    heap.share_one_heap()
    assert asked == [(heap.M_ARENA_MAX, 1)]


def test_an_operator_who_says_otherwise_is_obeyed(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    heap.share_one_heap()
    assert asked == []


def test_a_libc_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: SimpleNamespace())
    heap.share_one_heap()
