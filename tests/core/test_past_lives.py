"""Records of lives that have ended are deleted, and what is counted of them stays."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.audit import Verdict
from elasticps.core.ids import JobName, NodeId, WorkerId
from elasticps.core.jobs import next_status
from elasticps.core.past_lives import KEPT, MOST_AT_ONCE, counted, outlived
from elasticps.core.records import (
    Attempts,
    JobSpec,
    JobStatus,
    LivingWorker,
    PastLives,
    WorkerRecord,
    WorkerState,
)
from tests.support.properties import REPRODUCIBLE

A = NodeId("a")
SPEC = JobSpec(name=JobName("job"), argv=("train.py",), cwd="/", audit=True)
NUMBERS = st.integers(0, 9)
RECORDS = st.builds(
    WorkerRecord,
    node=st.just(A),
    state=st.sampled_from([WorkerState.LEFT, WorkerState.KILLED]),
    verdict=st.none() | st.builds(Verdict, NUMBERS, NUMBERS, NUMBERS),
    pushed_bytes=NUMBERS,
    gradient_bytes=NUMBERS,
    checkpoint_attempts=st.builds(
        Attempts, made=NUMBERS, failed=NUMBERS, error=st.sampled_from(["", "full", "away"])
    ),
)
ENDS = st.lists(
    st.tuples(st.none() | RECORDS, st.integers(0, 2), st.booleans()),
    min_size=KEPT + 4,
    max_size=120,
)
"""How one of the workers ends (None: with its node, without a word), which one, and whether the
leader decides before the next one does."""


def life(number: int, revision: int, record: WorkerRecord) -> LivingWorker:
    return LivingWorker(
        worker=WorkerId(number), uid=f"a.{number}", record=record, revision=revision
    )


def running(number: int) -> LivingWorker:
    return life(number, number, WorkerRecord(node=A))


class Leader:
    """What one decides of a job's lives; ``forgets`` those that it need not keep."""

    def __init__(self, *, forgets: bool) -> None:
        self.forgets = forgets
        self.status: JobStatus | None = None
        self.lives: dict[WorkerId, LivingWorker] = {}

    def decide(self, revision: int) -> None:
        self.status = next_status(
            SPEC,
            self.status,
            slots={A: 3},
            workers=list(self.lives.values()),
            revision=revision,
            cancelled=False,
            now_unix=0.0,
        )
        gone = outlived(self.lives.values()) if self.forgets else []
        past = counted(self.status.past, gone)
        self.status = msgspec.structs.replace(self.status, past=past)
        for each in gone:
            del self.lives[each.worker]


@settings(REPRODUCIBLE, max_examples=30)
@given(ENDS)
def test_counts_are_the_same_whether_records_are_deleted_or_not(ends: list) -> None:
    leaders = [Leader(forgets=True), Leader(forgets=False)]
    alive, revision = [1, 2, 3], 3
    for leader in leaders:
        leader.lives = {WorkerId(number): running(number) for number in alive}
        leader.decide(revision)
    for record, which, decided in ends:
        revision += 2
        ended, begun = alive.pop(which), revision + 1
        alive.append(begun)
        for leader in leaders:
            if record is None:
                del leader.lives[WorkerId(ended)]
            else:
                leader.lives[WorkerId(ended)] = life(ended, revision, record)
            leader.lives[WorkerId(begun)] = running(begun)
            if decided:
                leader.decide(begun)
    for leader in leaders:
        for _ in range(3):  # each deletes as many as one transaction may
            leader.decide(revision + 1)
    one, other = (msgspec.structs.replace(leader.status, past=PastLives()) for leader in leaders)
    assert one == other
    assert len(leaders[0].lives) <= KEPT + len(alive)


def test_those_that_ended_last_are_kept_and_such_as_decide_the_jobs_end() -> None:
    record = WorkerRecord(node=A, state=WorkerState.KILLED)
    broken = [life(number, 1000 - number, record) for number in range(1, KEPT + 4)]
    others = [
        life(500 + number, number, msgspec.structs.replace(record, state=state))
        for number, state in enumerate(
            (WorkerState.RUNNING, WorkerState.SUCCEEDED, WorkerState.FAILED)
        )
    ]
    gone = outlived([*broken, *others])
    assert [each.worker for each in gone] == [KEPT + 3, KEPT + 2, KEPT + 1]
    assert outlived(broken[:KEPT]) == []
    many = [life(number, number, record) for number in range(1, 2 * MOST_AT_ONCE + KEPT)]
    assert [each.worker for each in outlived(many)] == list(range(1, MOST_AT_ONCE + 1))
