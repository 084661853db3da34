"""Ready or not, why, and since when."""

from __future__ import annotations

import time

from elasticps.daemon.readiness import Condition, Readiness


def test_a_reason_holds_since_it_was_first_seen_and_goes_when_it_is_over() -> None:
    registered = True
    readiness = Readiness(
        (Condition(reason="not registered", holds=lambda: registered),), time.monotonic, 1.0
    )
    assert readiness.reasons() == ()
    registered = False
    readiness.look()
    (first,) = readiness.reasons()
    (later,) = readiness.reasons()
    assert first.reason == later.reason == "not registered"
    assert abs(first.since_unix_s - later.since_unix_s) < 0.1
    assert later.for_s >= first.for_s >= 0
    registered = True
    assert readiness.reasons() == ()


def test_etcds_silence_is_a_reason_since_its_last_answer() -> None:
    answered_s = time.monotonic()
    readiness = Readiness((), lambda: answered_s, silence_limit_s=2.0)
    assert readiness.reasons() == ()
    answered_s -= 10.0
    (told,) = readiness.reasons()
    assert told.reason == "etcd does not answer"
    assert 10.0 <= told.for_s < 11.0
    assert abs(time.time() - 10.0 - told.since_unix_s) < 1.0
