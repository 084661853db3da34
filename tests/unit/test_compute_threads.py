"""Threads that share out pieces: each is done once, errors come out, and nobody spins or stays."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import torch

from elasticps.server.compute import COPIED_BYTES, ComputeThreads, Crowding, Share


@contextmanager
def threads(count: int) -> Iterator[ComputeThreads]:
    with closing(ComputeThreads(count)) as made:
        yield made


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("pieces", [0, 1, 3, 40])
def test_each_piece_is_done_once_and_none_after_the_return(count: int, pieces: int) -> None:
    with threads(count) as made:
        for _ in range(20):
            done: list[tuple[int, int]] = []

            def work(thread: int, piece: int, done: list[tuple[int, int]] = done) -> None:
                done.append((thread, piece))

            made.share_out(pieces, work)
            assert sorted(piece for _, piece in done) == list(range(pieces))
            assert {thread for thread, _ in done} <= set(range(count))


def test_pieces_are_worked_on_side_by_side() -> None:
    both = threading.Barrier(2)
    by_thread: Counter[int] = Counter()

    def work(thread: int, _: int) -> None:
        both.wait(timeout=30.0)
        by_thread[thread] += 1

    with threads(2) as made:
        made.share_out(2, work)
    assert by_thread == {0: 1, 1: 1}


def test_shares_of_one_piece_are_dealt_out_where_there_are_several() -> None:
    both = threading.Barrier(2)
    share = Share(1, lambda *_: both.wait(timeout=30.0) and None, lambda error: done.append(error))
    done: list[Exception | None] = []
    with threads(2) as made:
        made.share_out_each([share, share])
    assert done == [None, None]


def test_an_error_is_raised_when_all_is_done_and_the_next_work_is_as_ever() -> None:
    done: list[int] = []

    def work(_: int, piece: int) -> None:
        done.append(piece)
        if piece % 3 == 1:
            raise ValueError(f"piece {piece}")

    with threads(3) as made:
        with pytest.raises(ValueError, match="piece"):
            made.share_out(9, work)
        assert sorted(done) == list(range(9))
        made.share_out(4, lambda _, piece: done.append(piece))
    assert len(done) == 13


@pytest.mark.parametrize("count", [1, 3])
def test_of_many_shares_each_is_told_of_its_own_end_and_error(count: int) -> None:
    ended: list[tuple[int, str]] = []

    def share(number: int) -> Share:
        def work(_: int, piece: int) -> None:
            if number % 2 and piece == 1:
                raise ValueError(f"share {number}")

        return Share(number, work, lambda error: ended.append((number, str(error or ""))))

    def shares() -> Iterator[Share]:
        yield from map(share, range(5))
        raise KeyError("no more")

    with threads(count) as made, pytest.raises(KeyError):
        made.share_out_each(shares())
    assert ended == [(0, ""), (1, ""), (2, ""), (3, "share 3"), (4, "")]


def test_bytes_that_are_copied_by_several_are_the_same() -> None:
    source = torch.randint(256, (3 * COPIED_BYTES + 5,), dtype=torch.uint8)
    target = torch.zeros_like(source)
    with threads(3) as made:
        made.copy(memoryview(target.numpy()), memoryview(source.numpy()))
    assert torch.equal(target, source)


def test_where_the_cores_are_taken_the_others_are_tried_now_and_then_alone() -> None:
    crowding = Crowding()
    for _ in range(20):
        assert crowding.lets_others_help()
        crowding.note(own_s=0.010, waited_s=0.0024)  # a piece was still under way
    for _ in range(4):
        crowding.note(own_s=0.010, waited_s=0.006)
    assert [crowding.lets_others_help() for _ in range(16)].count(True) == 2
    while not crowding.lets_others_help():
        pass
    crowding.note(own_s=0.010, waited_s=0.0)
    assert crowding.lets_others_help()


def test_threads_sleep_while_there_is_nothing_and_end_with_close() -> None:
    before = set(threading.enumerate())
    made = ComputeThreads(3)
    assert set(threading.enumerate()) == before  # none is needed yet
    made.share_out(8, lambda *_: None)
    others = set(threading.enumerate()) - before
    assert len(others) == 2
    clocks = [time.pthread_getcpuclockid(thread.ident or 0) for thread in others]
    spent_s = [time.clock_gettime(clock) for clock in clocks]
    time.sleep(0.05)
    for clock, spent in zip(clocks, spent_s, strict=True):
        assert time.clock_gettime(clock) - spent < 0.02
    made.close()
    made.close()
    assert set(threading.enumerate()) == before
