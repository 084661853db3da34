"""How a job's workers are shared out over nodes, and what is said where there are too few."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticps.core.ids import JobName, NodeId, WorkerId
from elasticps.core.jobs import next_status
from elasticps.core.reasons import dated
from elasticps.core.records import (
    JobSpec,
    JobState,
    JobStatus,
    LivingWorker,
    ScaleRecord,
    WorkerRecord,
)
from elasticps.core.shares import seniority, share

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
SPEC = JobSpec(name=JobName("job"), argv=("train.py",), cwd="/", start_workers=2)
FULL = "2 of 5 workers: no node is free (a runs 1, b runs 1)"
RUNNING_JOB = JobStatus(state=JobState.RUNNING, reason="2 workers", started=True)


def life(number: int, node: NodeId) -> LivingWorker:
    return LivingWorker(
        worker=WorkerId(number), uid=f"w{number}", record=WorkerRecord(node=node), revision=number
    )


def scaled(workers: int, *ranks: int) -> ScaleRecord:
    return ScaleRecord(workers=workers, ranks=tuple(map(WorkerId, ranks)))


def status_when(
    *workers: LivingWorker,
    slots: dict[NodeId, int],
    scale: ScaleRecord | None,
    status: JobStatus = RUNNING_JOB,
    **more: Any,
) -> JobStatus:
    return next_status(
        SPEC,
        status,
        slots=slots,
        workers=workers,
        revision=100,
        cancelled=False,
        now_unix=100.0,
        scale=scale,
        **more,
    )


@pytest.mark.parametrize(
    ("most", "before", "wanted"),
    [
        (1, {}, {A: 1}),
        (2, {}, {A: 1, B: 1}),
        (4, {}, {A: 2, B: 1, C: 1}),
        (2, {C: 1, B: 1}, {B: 1, C: 1}),  # what was wanted already is not moved elsewhere
        (9, {}, {A: 3, B: 1, C: 1}),
    ],
)
def test_workers_that_do_not_run_yet_begin_where_there_are_the_fewest(
    most: int, before: dict[NodeId, int], wanted: dict[NodeId, int]
) -> None:
    assert share({C: 1, A: 3, B: 1}, most, [], before) == wanted


def test_who_runs_stays_where_it_is_when_a_node_with_an_earlier_name_joins() -> None:
    running = [life(1, B), life(2, C)]
    assert share({A: 1, B: 1, C: 1}, 2, running, {B: 1, C: 1}) == {B: 1, C: 1}


def test_the_highest_ranks_leave_and_the_main_worker_last() -> None:
    running = [life(1, A), life(2, B), life(3, C), life(9, A)]
    slots = {A: 2, B: 1, C: 1}
    before = {A: 2, B: 1, C: 1}
    # The third to be started was the first to join: it is the main one. 9 has come since.
    assert share(slots, 1, running, before, scaled(1, 3, 1, 2)) == {C: 1}
    assert share(slots, 2, running, before, scaled(2, 3, 1, 2)) == {A: 1, C: 1}
    assert share(slots, 3, running, before, scaled(3, 3, 1, 2)) == {A: 1, B: 1, C: 1}
    in_order = sorted(map(WorkerId, (9, 1, 2, 3)), key=lambda w: seniority(w, scaled(1, 3, 1, 2)))
    assert in_order == [3, 1, 2, 9]


def test_a_main_worker_on_a_node_that_may_run_none_does_not_count() -> None:
    running = [life(1, A), life(2, B), life(3, C)]
    assert share({B: 1, C: 1}, 1, running, {}, scaled(1, 1, 3, 2)) == {C: 1}


nodes = st.sampled_from([A, B, C])


@given(
    slots=st.dictionaries(nodes, st.integers(0, 4)),
    most=st.integers(0, 12),
    homes=st.lists(nodes, max_size=8),
    before=st.dictionaries(nodes, st.integers(0, 4)),
)
def test_shares_fill_what_there_is_and_no_more_and_settle(
    slots: dict[NodeId, int], most: int, homes: list[NodeId], before: dict[NodeId, int]
) -> None:
    running = [life(number, node) for number, node in enumerate(homes, start=1)]
    shares = share(slots, most, running, before)
    assert sum(shares.values()) == min(most, sum(slots.values()))
    assert all(0 < count <= slots[node] for node, count in shares.items())
    assert share(slots, most, running, shares) == shares


@pytest.mark.parametrize(
    ("homes", "slots", "asked", "draining", "reason"),
    [
        ([A, B], {A: 1, B: 1}, 2, [], "2 workers"),
        ([A, B, C], {A: 1, B: 1, C: 1}, 1, [], "3 workers, 2 to leave: scaled to 1"),
        ([A], {A: 1, B: 1, C: 1}, 3, [], "1 of 3 workers: 2 to start on b, c"),
        (
            [A, B],
            {A: 1, B: 1},
            5,
            [],
            f"{FULL}: start a daemon on another machine",
        ),
        (
            [A, B],
            {A: 1, B: 1},
            5,
            [C],
            f"{FULL}: `elasticps undrain` c, or start a daemon on another machine",
        ),
    ],
)
def test_a_scaled_jobs_reason_says_how_far_it_is_and_what_to_do(
    homes: list[NodeId],
    slots: dict[NodeId, int],
    asked: int,
    draining: list[NodeId],
    reason: str,
) -> None:
    lives = [life(number, node) for number, node in enumerate(homes, start=1)]
    told = status_when(*lives, slots=slots, scale=scaled(asked), draining=draining)
    assert (told.state, told.reason, told.asked) == (JobState.RUNNING, reason, asked)


def test_a_job_that_trains_goes_on_with_fewer_than_it_began_with() -> None:
    told = status_when(life(1, A), slots={A: 1, B: 1}, scale=scaled(1, 1))
    assert (told.state, told.workers) == (JobState.RUNNING, {A: 1})


def test_a_job_that_cannot_start_says_what_it_waits_for_and_what_to_do() -> None:
    fresh = JobStatus(state=JobState.PENDING, reason="")
    told = status_when(life(1, A), slots={A: 1}, scale=None, status=fresh, draining=[B])
    assert told.reason == (
        "waiting for workers: 1 of 2 started, and there is room for 1: `elasticps undrain` b, or"
        " start a daemon on another machine"
    )
    told = status_when(slots={}, scale=None, status=fresh)
    assert told.reason == (
        "waiting for a node that may run workers: start a daemon on another machine"
    )


def test_a_reason_has_a_since_that_counts_do_not_move() -> None:
    one = dated(msgspec.structs.replace(RUNNING_JOB, reason="3 of 9 blocks"), None, 10.0)
    assert one.since_unix == 10.0
    fewer = msgspec.structs.replace(one, reason="2 of 9 blocks")
    assert dated(fewer, one, 20.0).since_unix == 10.0
    other = msgspec.structs.replace(one, reason="2 workers")
    assert dated(other, one, 20.0).since_unix == 20.0
    ended = msgspec.structs.replace(one, state=JobState.CANCELLED)
    assert dated(ended, one, 30.0).since_unix == 30.0
