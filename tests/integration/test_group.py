"""Gloo groups without a host: threads of the test are the ranks, a dictionary is their shelf."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from elasticps.errors import MembershipChanged, PeerUnavailable
from elasticps.worker.group import Group, Rendezvous, until_reaped
from tests.support.processes import open_fds, wait_until


class Ranks:
    """The ranks of one generation. ``over`` ends it."""

    def __init__(self, world: int) -> None:
        self.over = threading.Event()
        self._known: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self.groups = [
            Group(Rendezvous(self._put, self._get), rank, world, "127.0.0.1", self.over.is_set)
            for rank in range(world)
        ]

    def _put(self, key: str, value: bytes) -> None:
        with self._changed:
            self._known[key] = value
            self._changed.notify_all()

    def _get(self, rank: int, key: str) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: key in self._known or self.over.is_set())
            if self.over.is_set():
                raise MembershipChanged("over")
            return self._known[key]

    def each(self, act: Callable[[int, Group], object]) -> list[object]:
        """What ``act`` returns, or raises, in a thread for each rank."""

        def caught(rank: int) -> object:
            try:
                return act(rank, self.groups[rank])
            except (PeerUnavailable, MembershipChanged) as error:
                return error

        with ThreadPoolExecutor(len(self.groups)) as threads:
            return list(threads.map(caught, range(len(self.groups))))

    def drop(self) -> None:
        for group in self.groups:
            group.drop()
        until_reaped(30)


def numbers(rank: int) -> torch.Tensor:
    return torch.randn(10_000, generator=torch.Generator().manual_seed(rank))


def summed(rank: int, group: Group) -> torch.Tensor:
    tensor = numbers(rank)
    group.sum(tensor)
    return tensor


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_sum_is_the_same_in_every_rank_to_the_bit(world: int) -> None:
    ranks = Ranks(world)
    for _ in range(3):
        results = ranks.each(summed)
        expected = torch.stack([numbers(rank) for rank in range(world)]).sum(0)
        for result in results:
            assert isinstance(result, torch.Tensor)
            assert torch.equal(result, results[0])  # type: ignore[arg-type]
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    ranks.drop()


def test_a_rank_that_drops_out_fails_the_others_at_once_with_a_typed_error() -> None:
    ranks = Ranks(3)
    ranks.each(summed)

    def act(rank: int, group: Group) -> object:
        return group.drop() if rank == 2 else summed(rank, group)

    results = ranks.each(act)
    assert results[2] is None
    assert [type(result) for result in results[:2]] == [PeerUnavailable, PeerUnavailable]
    ranks.drop()


def test_the_ledgers_word_ends_a_sum_that_a_hung_rank_would_hold_up() -> None:
    ranks = Ranks(3)
    ranks.each(summed)

    def act(rank: int, group: Group) -> object:
        if rank == 2:
            threading.Timer(0.2, ranks.over.set).start()
            return None
        return summed(rank, group)

    results = ranks.each(act)
    assert {type(result) for result in results[:2]} <= {MembershipChanged, PeerUnavailable}
    ranks.drop()


def test_the_ledgers_word_ends_the_wait_for_a_rank_that_never_comes() -> None:
    ranks = Ranks(3)

    def act(rank: int, group: Group) -> object:
        if rank == 2:
            threading.Timer(0.2, ranks.over.set).start()
            return None
        return summed(rank, group)

    results = ranks.each(act)
    assert [type(result) for result in results[:2]] == [MembershipChanged, MembershipChanged]
    ranks.drop()


def test_many_generations_leak_neither_descriptors_nor_threads() -> None:
    def generations(count: int) -> None:
        for _ in range(count):
            ranks = Ranks(2)
            ranks.each(summed)
            ranks.drop()

    generations(1)
    fds, threads = len(open_fds()), threading.active_count()
    generations(10)
    wait_until(lambda: len(open_fds()) <= fds and threading.active_count() <= threads)


def test_the_users_default_group_is_left_alone() -> None:
    ranks = Ranks(2)
    ranks.each(summed)
    assert not torch.distributed.is_initialized()
    ranks.drop()
