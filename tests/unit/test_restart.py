"""The restart decision: pure, so every case is a table."""

from __future__ import annotations

import pytest

from elasticps.core.restart import (
    Ended,
    GiveUp,
    Restart,
    RestartPolicy,
    RestartTracker,
    RestartWhen,
    Stay,
)

ALWAYS = RestartPolicy(max_restarts=1000)


def decisions(policy: RestartPolicy, *lives: tuple[float, Ended]) -> list[object]:
    """Lives of the given lengths, each started as soon as the decision before allows."""
    tracker = RestartTracker(policy)
    now = 100.0
    made: list[object] = []
    for lifetime_s, how in lives:
        tracker.started(now)
        now += lifetime_s
        decision = tracker.exited(now, how)
        made.append(decision)
        if isinstance(decision, Restart):
            now += decision.after_s
    return made


@pytest.mark.parametrize(
    ("when", "how", "restarted"),
    [
        (RestartWhen.ALWAYS, Ended.CODE, True),
        (RestartWhen.ALWAYS, Ended.SIGNAL, True),
        (RestartWhen.ALWAYS, Ended.NOT_STARTED, True),
        (RestartWhen.ALWAYS, Ended.REQUESTED, False),
        (RestartWhen.ON_SIGNAL, Ended.CODE, False),
        (RestartWhen.ON_SIGNAL, Ended.SIGNAL, True),
        (RestartWhen.ON_SIGNAL, Ended.NOT_STARTED, True),
        (RestartWhen.ON_SIGNAL, Ended.REQUESTED, False),
        (RestartWhen.NEVER, Ended.CODE, False),
        (RestartWhen.NEVER, Ended.SIGNAL, False),
        (RestartWhen.NEVER, Ended.NOT_STARTED, False),
        (RestartWhen.NEVER, Ended.REQUESTED, False),
    ],
)
def test_policy_decides_which_ends_are_restarted(when, how, restarted):
    (decision,) = decisions(RestartPolicy(when=when), (1.0, how))
    assert decision == (Restart(0.1) if restarted else Stay())


def test_delay_doubles_up_to_its_limit():
    made = decisions(ALWAYS, *[(0.0, Ended.CODE)] * 10)
    assert [d.after_s for d in made] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
    )


def test_delay_starts_anew_after_a_long_life():
    short, long = (1.0, Ended.SIGNAL), (30.5, Ended.SIGNAL)
    made = decisions(ALWAYS, short, short, short, long, short)
    assert [d.after_s for d in made] == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2])


def test_a_spawn_that_fails_late_is_no_long_life():
    tracker = RestartTracker(ALWAYS)
    tracker.started(0.0)
    assert tracker.exited(1.0, Ended.CODE) == Restart(0.1)
    tracker.started(2.0)
    assert tracker.exited(100.0, Ended.NOT_STARTED) == Restart(0.2)


def test_exit_without_a_start_counts_as_a_life_of_no_length():
    assert RestartTracker(ALWAYS).exited(1000.0, Ended.NOT_STARTED) == Restart(0.1)


def test_gives_up_after_too_many_restarts_within_the_window():
    policy = RestartPolicy(max_restarts=3, window_s=60.0)
    made = decisions(policy, *[(0.0, Ended.CODE)] * 4)
    assert made[:3] == [Restart(0.1), Restart(0.2), Restart(0.4)]
    assert made[3] == GiveUp("gave up after 3 restarts within 60 s")


def test_restarts_that_left_the_window_do_not_count():
    policy = RestartPolicy(max_restarts=3, window_s=60.0)
    made = decisions(policy, *[(25.0, Ended.CODE)] * 20)
    assert all(isinstance(decision, Restart) for decision in made)


def test_no_restart_allowed_gives_up_at_once():
    assert decisions(RestartPolicy(max_restarts=0), (5.0, Ended.CODE)) == [
        GiveUp("gave up after 0 restarts within 120 s")
    ]


def test_default_gives_up_on_a_process_that_fails_at_start():
    made = decisions(RestartPolicy(), *[(2.0, Ended.CODE)] * 11)
    assert [type(decision) for decision in made] == [Restart] * 10 + [GiveUp]
