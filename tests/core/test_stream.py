"""The order of a replica stream: a snapshot, then every op since, and anew after a break."""

from __future__ import annotations

import pytest

from elasticps.core.replication import Check
from elasticps.core.stream import MAX_OPS_QUEUED, Due, Sent, StreamOrder, outcome


def begun(*ops: int) -> StreamOrder[int]:
    order: StreamOrder[int] = StreamOrder()
    order.begin()
    for op in ops:
        order.publish(op, counted=False)
    return order


def test_a_stream_begins_with_a_snapshot_that_contains_all_before_it() -> None:
    order: StreamOrder[int] = StreamOrder()
    order.publish(1, counted=False)
    assert order.due() is Due.SNAPSHOT
    order.begin()
    assert order.due() is Due.NOTHING


def test_ops_follow_in_order() -> None:
    order = begun(1, 2)
    assert [order.due(), order.take(), order.take(), order.due()] == [Due.OP, 1, 2, Due.NOTHING]


def test_after_a_break_comes_a_snapshot_and_no_op_from_before() -> None:
    order = begun(1, 2)
    order.start_over()
    assert order.due() is Due.SNAPSHOT
    order.begin()
    assert order.due() is Due.NOTHING


def test_a_peer_that_falls_too_far_behind_starts_over() -> None:
    order = begun(*range(MAX_OPS_QUEUED))
    assert order.due() is Due.OP
    order.publish(MAX_OPS_QUEUED, counted=False)
    order.publish(MAX_OPS_QUEUED + 1, counted=False)
    assert order.due() is Due.OVERFLOW
    order.start_over()
    assert order.due() is Due.SNAPSHOT


def test_a_peer_that_clients_wait_for_is_never_given_up_for_its_lag() -> None:
    order = begun(*range(MAX_OPS_QUEUED))
    order.publish(MAX_OPS_QUEUED, counted=True)
    assert [order.take() for _ in range(MAX_OPS_QUEUED + 1)] == list(range(MAX_OPS_QUEUED + 1))


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        (Check.OK, Sent.TAKEN),
        (Check.BEHIND, Sent.AGAIN),
        (Check.FENCED, Sent.REFUSED),
        (Check.UNKNOWN, Sent.REFUSED),
        (Check.CONFLICT, Sent.REFUSED),
    ],
)
def test_the_peers_answer_tells_what_became_of_a_message(answer: Check, sent: Sent) -> None:
    assert outcome(answer) is sent
