"""What no step waits for is done between two steps, and yet before the next checkpoint is due."""

from __future__ import annotations

from elasticps.server.pace import QUIET_S, SCHEDULE, Pace

PERIOD_S = 100.0
PIECES = 10


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def begun(clock: Clock) -> Pace:
    """Of a checkpoint that begins now, a period after the one before."""
    pace = Pace(clock)
    clock.now_s += PERIOD_S
    pace.begin()
    for _ in range(PIECES):
        pace.add()
    return pace


def test_all_is_done_at_once_while_no_worker_asks_for_anything() -> None:
    pace = begun(Clock())
    assert [pace.wait_s() for _ in range(PIECES)] == [0.0] * PIECES


def test_the_next_piece_waits_for_the_end_of_an_exchange() -> None:
    clock = Clock()
    pace = begun(clock)
    assert pace.wait_s() == 0
    pace.asked()
    clock.now_s += QUIET_S / 4
    assert 0 < pace.wait_s() <= QUIET_S
    clock.now_s += pace.wait_s()
    assert pace.wait_s() == 0


def test_all_is_done_before_the_next_one_is_due_however_busy_the_server_is() -> None:
    clock = Clock()
    pace = begun(clock)
    began_s, done_s = clock.now_s, []
    while len(done_s) < PIECES:
        pace.asked()
        if pace.wait_s() == 0:
            done_s.append(clock.now_s - began_s)
        clock.now_s += 1.0
    assert done_s[-1] <= SCHEDULE * PERIOD_S
    assert done_s == sorted(set(done_s))  # not all of them at the end


def test_nothing_waits_where_somebody_waits_for_the_checkpoint_and_the_next_one_is_paced() -> None:
    clock = Clock()
    pace = begun(clock)
    pace.hurry()
    for _ in range(PIECES):
        pace.asked()
        assert pace.wait_s() == 0
    clock.now_s += PERIOD_S
    pace.begin()
    pace.add()
    pace.asked()
    assert [pace.wait_s() == 0 for _ in range(2)] == [True, False]
