"""A job's status as its workers come, finish and fail."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticps.core.audit import Verdict
from elasticps.core.ids import BlockId, JobName, NodeId, ServerId, WorkerId
from elasticps.core.jobs import lost, next_status, with_copies
from elasticps.core.plan import Entry
from elasticps.core.records import (
    Attempts,
    JobSpec,
    JobState,
    JobStatus,
    LivingWorker,
    WorkerRecord,
    WorkerState,
    decode,
    encode,
)

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
RUNNING, SUCCEEDED = WorkerState.RUNNING, WorkerState.SUCCEEDED
LEFT, FAILED, KILLED = WorkerState.LEFT, WorkerState.FAILED, WorkerState.KILLED
SPEC = JobSpec(name=JobName("job"), argv=("train.py",), cwd="/", start_workers=2)
SLOTS = {A: 1, B: 1}
PENDING_JOB = JobStatus(state=JobState.PENDING, reason="")
RUNNING_JOB = JobStatus(state=JobState.RUNNING, reason="2 workers", workers={A: 1, B: 1})
NOW = 100.0
COMING = "; copies are made as nodes have room"
ALONE = "; 1 node lives: start a daemon on another machine"
ON_A = "; all blocks are on a alone: if it dies, the job is lost"
STUCK = "; waiting until 1 blocks have 2 copies (min-insync)"


def life(
    number: int, node: NodeId, state: WorkerState, *, revision: int = 0, **record: Any
) -> LivingWorker:
    """A worker whose record was written last at ``revision``; of two without, the later number's is
    the later one.
    """
    return LivingWorker(
        worker=WorkerId(number),
        uid=f"w{number}",
        record=WorkerRecord(node=node, state=state, **record),
        revision=revision or number,
    )


def status_after(
    status: JobStatus | None,
    *workers: LivingWorker,
    slots: dict[NodeId, int] = SLOTS,
    spec: JobSpec = SPEC,
    cancelled: bool = False,
    revision: int = 100,
) -> JobStatus:
    """The next status; asked again, nothing changes any more."""

    def next_at(status: JobStatus | None, revision: int, now_unix: float) -> JobStatus:
        return next_status(
            spec,
            status,
            slots=slots,
            workers=workers,
            revision=revision,
            cancelled=cancelled,
            now_unix=now_unix,
        )

    following = next_at(status, revision, NOW)
    assert next_at(following, revision + 1, NOW + 1) == following
    return following


@pytest.mark.parametrize(
    ("status", "workers", "slots", "state", "wanted"),
    [
        (None, [], {}, JobState.PENDING, {}),
        (None, [], SLOTS, JobState.PENDING, {A: 1, B: 1}),
        (None, [life(1, A, RUNNING)], SLOTS, JobState.PENDING, {A: 1, B: 1}),
        (
            PENDING_JOB,
            [life(1, A, RUNNING), life(2, B, RUNNING)],
            SLOTS,
            JobState.RUNNING,
            {A: 1, B: 1},
        ),
        # once it runs, it goes on with whoever there is
        (RUNNING_JOB, [life(2, B, RUNNING)], SLOTS, JobState.RUNNING, {A: 1, B: 1}),
        (
            RUNNING_JOB,
            [life(1, A, KILLED), life(2, B, RUNNING)],
            SLOTS,
            JobState.RUNNING,
            {A: 1, B: 1},
        ),
        (
            RUNNING_JOB,
            [life(1, A, LEFT), life(2, B, RUNNING)],
            {B: 1, C: 2},
            JobState.RUNNING,
            {B: 1, C: 2},
        ),
        (RUNNING_JOB, [life(1, A, RUNNING)], {}, JobState.PENDING, {}),
        # nobody is started any more when the first has finished
        (
            RUNNING_JOB,
            [life(1, A, SUCCEEDED), life(2, B, RUNNING)],
            {A: 1, B: 1, C: 1},
            JobState.RUNNING,
            {B: 1},
        ),
        (
            RUNNING_JOB,
            [life(1, A, SUCCEEDED), life(2, B, KILLED), life(3, C, RUNNING)],
            {A: 1, B: 1, C: 1},
            JobState.RUNNING,
            {C: 1},
        ),
        # the end is reached when the last one ended in order; else one goes on
        (RUNNING_JOB, [life(1, A, SUCCEEDED), life(2, B, SUCCEEDED)], {}, JobState.SUCCEEDED, {}),
        (RUNNING_JOB, [life(1, A, LEFT), life(2, B, SUCCEEDED)], SLOTS, JobState.SUCCEEDED, {}),
        (RUNNING_JOB, [life(1, A, KILLED), life(2, B, SUCCEEDED)], SLOTS, JobState.SUCCEEDED, {}),
        (RUNNING_JOB, [life(1, A, SUCCEEDED), life(2, B, LEFT)], SLOTS, JobState.RUNNING, {A: 1}),
        (RUNNING_JOB, [life(1, A, SUCCEEDED), life(2, B, KILLED)], SLOTS, JobState.RUNNING, {A: 1}),
        (
            msgspec.structs.replace(RUNNING_JOB, workers={B: 1}),
            [life(1, A, SUCCEEDED), life(2, B, KILLED)],
            {A: 1, B: 2},
            JobState.RUNNING,
            {B: 1},
        ),
        (
            RUNNING_JOB,
            [life(1, A, SUCCEEDED), life(2, B, KILLED)],
            {A: 0, C: 3},
            JobState.RUNNING,
            {C: 1},
        ),
        (RUNNING_JOB, [life(1, A, SUCCEEDED), life(2, B, KILLED)], {}, JobState.PENDING, {}),
        (RUNNING_JOB, [life(1, A, FAILED), life(2, B, RUNNING)], SLOTS, JobState.FAILED, {}),
        (RUNNING_JOB, [life(1, A, FAILED), life(2, B, SUCCEEDED)], SLOTS, JobState.FAILED, {}),
        (RUNNING_JOB, [life(1, A, LEFT), life(2, B, KILLED)], SLOTS, JobState.RUNNING, SLOTS),
    ],
)
def test_a_jobs_state_and_how_many_workers_each_node_runs(
    status: JobStatus | None,
    workers: list[LivingWorker],
    slots: dict[NodeId, int],
    state: JobState,
    wanted: dict[NodeId, int],
) -> None:
    following = status_after(status, *workers, slots=slots)
    assert (following.state, following.workers) == (state, wanted)
    assert following.reason
    assert (following.ended_unix == NOW) == state.final


@pytest.mark.parametrize(
    ("most", "wanted"), [(1, {A: 1}), (3, {A: 1, B: 1, C: 1}), (9, {A: 2, B: 1, C: 2})]
)
def test_workers_are_spread_over_the_nodes_up_to_max_workers(
    most: int, wanted: dict[NodeId, int]
) -> None:
    spec = msgspec.structs.replace(SPEC, max_workers=most, start_workers=1)
    slots = {C: 2, A: 2, B: 1}
    following = status_after(None, life(1, A, RUNNING), spec=spec, slots=slots)
    assert following.workers == wanted
    assert list(following.workers) == sorted(wanted)


def test_order_of_two_ends_is_that_of_their_records_not_of_the_workers() -> None:
    killed, finished = life(2, B, KILLED, revision=10), life(1, A, SUCCEEDED, revision=11)
    assert status_after(RUNNING_JOB, killed, finished).state is JobState.SUCCEEDED
    later = msgspec.structs.replace(killed, revision=12)
    assert status_after(RUNNING_JOB, later, finished).workers == {A: 1}


def test_a_worker_that_vanished_with_its_node_ended_when_that_was_noticed() -> None:
    both = status_after(RUNNING_JOB, life(1, A, RUNNING), life(2, B, RUNNING))
    one = status_after(both, life(1, A, SUCCEEDED, revision=20), life(2, B, RUNNING), revision=20)
    gone = status_after(one, life(1, A, SUCCEEDED, revision=20), revision=30)
    assert (gone.state, gone.workers) == (JobState.RUNNING, {B: 1})

    last = life(3, A, SUCCEEDED, revision=40)
    through = status_after(gone, life(1, A, SUCCEEDED, revision=20), last, revision=40)
    assert through.state is JobState.SUCCEEDED

    before = status_after(both, life(1, A, RUNNING), revision=30)
    then = status_after(before, life(1, A, SUCCEEDED, revision=31), revision=31)
    assert then.state is JobState.SUCCEEDED


def test_an_end_in_order_that_is_seen_with_a_vanishing_counts_as_the_earlier_one() -> None:
    both = status_after(RUNNING_JOB, life(1, A, RUNNING), life(2, B, RUNNING))
    after = status_after(both, life(1, A, SUCCEEDED, revision=20), revision=21)
    assert (after.state, after.workers) == (JobState.RUNNING, {A: 1})


ENDS = {"s": SUCCEEDED, "l": LEFT, "k": KILLED, "v": None}
"""How a worker ends; None: with its node, and its record goes."""


@given(
    ends=st.lists(st.sampled_from("slkv"), min_size=1, max_size=6),
    seen=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_a_job_succeeds_when_and_only_when_its_last_worker_ended_in_order(
    ends: list[str], seen: list[bool]
) -> None:
    """Whichever of the states between the leader has seen; a doubt means one worker more."""
    lives = {number: life(number, A, RUNNING) for number in range(1, len(ends) + 1)}
    status = status_after(RUNNING_JOB, *lives.values(), revision=10)
    revision, doubtful = 10, False
    for number, how in enumerate(ends, 1):
        revision += 1
        state = ENDS[how]
        if state is None:
            del lives[number]
        else:
            lives[number] = life(number, A, state, revision=revision)
        doubtful = doubtful or how == "v"
        if seen[number - 1] or number == len(ends):
            status = status_after(status, *lives.values(), revision=revision)
            blurred, doubtful = doubtful, False
            if number < len(ends):
                assert status.state is JobState.RUNNING
    if ends[-1] == "s" and not blurred:
        assert status.state is JobState.SUCCEEDED
    elif ends[-1] != "s":
        assert status.state is JobState.RUNNING
    if "s" in ends and status.state is JobState.RUNNING:
        assert sum(status.workers.values()) == 1


def test_a_failed_job_names_the_first_worker_that_failed_with_its_traceback() -> None:
    failed = status_after(
        RUNNING_JOB,
        life(7, B, FAILED, reason="exit code 1", traceback="later"),
        life(3, A, FAILED, reason="ValueError", traceback="first"),
    )
    assert failed.failure is not None
    assert (failed.failure.node, failed.failure.worker) == (A, "w3")
    assert (failed.failure.reason, failed.failure.traceback) == ("ValueError", "first")
    assert "ValueError" in failed.reason


def test_a_cancelled_job_ends_whatever_its_workers_do() -> None:
    for workers in ([], [life(1, A, RUNNING)], [life(1, A, FAILED)]):
        cancelled = status_after(RUNNING_JOB, *workers, cancelled=True)
        assert (cancelled.state, cancelled.workers) == (JobState.CANCELLED, {})


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_has_ended_stays_as_it_is(state: JobState) -> None:
    ended = msgspec.structs.replace(RUNNING_JOB, state=state, ended_unix=1.0)
    assert status_after(ended, life(1, A, FAILED), cancelled=True) == ended


def test_a_job_whose_blocks_are_gone_has_failed() -> None:
    failed = lost(SPEC, RUNNING_JOB, "3 blocks are lost", NOW)
    assert (failed.state, failed.reason, failed.ended_unix) == (
        JobState.FAILED,
        "3 blocks are lost",
        NOW,
    )
    assert failed.workers == {}


def test_a_lost_job_with_a_place_for_checkpoints_says_how_to_go_on() -> None:
    spec = msgspec.structs.replace(SPEC, argv=("my train.py", "-x"), checkpoint_dir="/saved")
    assert lost(spec, RUNNING_JOB, "3 blocks are lost", NOW).reason == (
        "3 blocks are lost; resume from the last checkpoint:"
        " elasticps submit --resume /saved 'my train.py' -x, or with run in place of submit"
    )


def entries(*holders: str) -> list[Entry]:
    """One for each text of nodes' letters, the primary's first."""
    servers = [[ServerId(f"{node}/1") for node in text] for text in holders]
    return [
        Entry(block=BlockId(block), primary=named[0], in_sync=tuple(named[1:]))
        for block, named in enumerate(servers)
    ]


@pytest.mark.parametrize(
    ("wanted", "plan", "alive", "told"),
    [
        ({}, entries("ab", "ba"), "ab", ""),
        ({}, [], "ab", ""),
        ({}, entries("ab", "ba", "a"), "ab", "; 1 of 3 blocks have fewer than 2 copies" + COMING),
        ({}, entries("ab", "bc", "ca"), "ac", "; 2 of 3 blocks have fewer than 2 copies" + COMING),
        (
            {"replicas": 3},
            entries("abc", "ab"),
            "abc",
            "; 1 of 2 blocks have fewer than 3 copies" + COMING,
        ),
        ({}, entries("a", "a"), "ab", ON_A + COMING),
        ({}, entries("a", "a"), "a", ON_A + ALONE),
        (
            {"replicas": 1},
            entries("a", "b"),
            "ab",
            "; 1 copy of each block: a node that dies takes the job with it",
        ),
        (
            {"min_insync": 2},
            entries("ab", "b"),
            "ab",
            "; 1 of 2 blocks have fewer than 2 copies" + STUCK + COMING,
        ),
    ],
)
def test_the_reason_of_a_running_job_tells_what_a_death_would_cost(
    wanted: dict[str, Any], plan: list[Entry], alive: str, told: str
) -> None:
    spec = msgspec.structs.replace(SPEC, **wanted)
    living = {ServerId(f"{node}/1") for node in alive}
    assert with_copies(spec, RUNNING_JOB, plan, living).reason == "2 workers" + told
    assert with_copies(spec, PENDING_JOB, plan, living) == PENDING_JOB


def test_bytes_that_all_workers_pushed_add_up() -> None:
    status = status_after(
        RUNNING_JOB,
        life(1, A, LEFT, pushed_bytes=10, gradient_bytes=100),
        life(2, A, RUNNING),
        life(3, B, SUCCEEDED, pushed_bytes=3, gradient_bytes=40),
    )
    assert (status.pushed_bytes, status.gradient_bytes) == (13, 140)


def test_verdicts_of_all_workers_add_up() -> None:
    status = status_after(
        RUNNING_JOB,
        life(1, A, LEFT, verdict=Verdict(5, 0, 1)),
        life(2, B, RUNNING),
        life(3, B, SUCCEEDED, verdict=Verdict(4, 2, 0)),
    )
    assert status.verdict == Verdict(9, 2, 1)


def test_an_audit_counts_the_workers_that_gave_no_verdict() -> None:
    spec = msgspec.structs.replace(SPEC, audit=True)
    began = status_after(
        RUNNING_JOB, life(1, A, RUNNING), life(2, B, RUNNING), life(3, C, RUNNING), spec=spec
    )
    assert (began.audited, began.unaudited) == (0, 3)
    ends = [life(2, B, KILLED), life(4, A, SUCCEEDED, verdict=Verdict(4, 0, 0))]
    ended = status_after(began, life(1, A, LEFT, verdict=Verdict(5, 0, 0)), *ends, spec=spec)
    assert (ended.audited, ended.unaudited) == (2, 2)  # the killed one, and the one that vanished
    assert status_after(RUNNING_JOB, life(1, A, SUCCEEDED)).unaudited == 0  # nobody asked


def test_a_record_reads_back_as_it_was() -> None:
    for record in (SPEC, RUNNING_JOB, status_after(RUNNING_JOB, life(1, A, FAILED, reason="x"))):
        assert decode(encode(record), type(record), "key") == record


def test_a_job_that_has_started_does_not_wait_for_its_first_number_of_workers_again() -> None:
    began = status_after(PENDING_JOB, life(1, A, RUNNING), life(2, B, RUNNING))
    assert began.state is JobState.RUNNING
    empty = status_after(began, slots={})
    assert empty.state is JobState.PENDING
    assert status_after(empty, life(3, A, RUNNING), slots={A: 1}).state is JobState.RUNNING


def test_the_reason_of_a_success_counts_the_checkpoints_that_failed() -> None:
    first = Attempts(made=1, failed=1, error="Permission denied")
    later = Attempts(failed=2, error="No space left on device")
    status = status_after(
        RUNNING_JOB,
        life(2, B, SUCCEEDED, checkpoint_attempts=later),
        life(1, A, KILLED, checkpoint_attempts=first),
    )
    failed = "3 of 4 checkpoints failed: No space left on device"
    assert status.reason == f"all workers finished; {failed}"
    assert str(status.checkpoint_attempts) == failed
    assert str(Attempts(made=4)) == ""


def test_a_process_group_that_lost_a_node_fails_its_job_and_nothing_is_restarted() -> None:
    def after(status: JobStatus, *workers: LivingWorker) -> JobStatus:
        return next_status(
            SPEC,
            status,
            slots={A: 1},
            workers=workers,
            revision=100,
            cancelled=False,
            now_unix=NOW,
            own_group=True,
        )

    running = msgspec.structs.replace(RUNNING_JOB, running=(WorkerId(1), WorkerId(2)))
    ended = after(running, life(1, A, RUNNING))
    assert (ended.state, ended.workers) == (JobState.FAILED, {})
    assert ended.reason.startswith("a worker is gone with its node b: the process group")
    assert after(running, life(1, A, RUNNING), life(2, A, LEFT)).state is JobState.FAILED
    assert after(running, life(1, A, RUNNING), life(2, B, RUNNING)).state is JobState.RUNNING
