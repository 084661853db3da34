"""Which ended jobs a leader forgets, and what that leaves alone."""

from __future__ import annotations

import pytest

from elasticps.core.ids import JobName
from elasticps.core.records import JobState, JobStatus, ScaleRecord
from elasticps.daemon.leader import Now, Orphans, Write, decide
from elasticps.daemon.retention import LEAST_KEPT_S, MOST_AT_ONCE, forgetting
from tests.support.contents import Contents

NOW = Now(unix=1_000_000.0, monotonic=0.0)


class Ended(Contents):
    """An etcd with jobs that have ended."""

    def ended(self, name: str, at: float, state: JobState = JobState.SUCCEEDED) -> None:
        self.job(name)
        self.put(
            self.keys.job_status(name), JobStatus(state=state, reason="because", ended_unix=at)
        )

    def decided(self, kept: int) -> list[Write]:
        return decide(self.view, NOW, Orphans(30.0), kept_jobs=kept)

    def settle(self, kept: int) -> list[str]:
        """The names of the jobs that are there when the leader has nothing to write any more."""
        while writes := self.decided(kept):
            for write in writes:
                self.write(write)
        return sorted(self.view.jobs)


@pytest.fixture
def etcd() -> Ended:
    return Ended()


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        (5, ["a", "b", "c", "d"]),
        (4, ["a", "b", "c", "d"]),
        (3, ["a", "b", "d"]),
        (2, ["b", "d"]),
        (0, []),
    ],
)
def test_the_jobs_that_ended_last_are_kept_and_of_equals_those_submitted_last(
    etcd: Ended, kept: int, left: list[str]
) -> None:
    for name, at in (("c", 1.0), ("a", 2.0), ("b", 2.0), ("d", 9.0)):
        etcd.ended(name, at)
    assert etcd.settle(kept) == left
    assert {key.split("/")[4] for key in etcd.items} == set(left)


def test_each_is_forgotten_with_all_its_keys_by_a_transaction_of_its_own(etcd: Ended) -> None:
    etcd.ended("a", 1.0)
    etcd.described(etcd.view.jobs[JobName("a")], 3)
    etcd.put(etcd.keys.job_cancel("a"), b"{}")
    etcd.ended("a-1", 2.0)
    first, second = etcd.decided(0)
    assert [write.why for write in (first, second)] == [
        "forgotten: 0 that ended later are kept"
    ] * 2
    etcd.write(first)
    assert {key.split("/")[4] for key in etcd.items} == {"a-1"}
    etcd.write(second)
    assert not etcd.items
    assert not etcd.view.jobs


@pytest.mark.parametrize("ahead_s", [0.0, LEAST_KEPT_S - 1])
def test_who_waits_for_an_end_has_a_minute_to_see_it_whatever_is_kept(
    etcd: Ended, ahead_s: float
) -> None:
    etcd.ended("seen", NOW.unix - LEAST_KEPT_S)
    etcd.ended("new", NOW.unix - LEAST_KEPT_S + 1)
    etcd.ended("ahead", NOW.unix + ahead_s)
    etcd.ended("far-ahead", NOW.unix + LEAST_KEPT_S)
    assert etcd.settle(0) == ["ahead", "new"]


def test_jobs_that_go_on_are_neither_counted_nor_forgotten(etcd: Ended) -> None:
    etcd.job("new")
    etcd.job("trains")
    etcd.put(etcd.keys.job_status("trains"), JobStatus(state=JobState.RUNNING, reason=""))
    etcd.ended("old", 1.0, JobState.CANCELLED)
    etcd.ended("older", 0.5, JobState.FAILED)
    assert etcd.settle(1) == ["new", "old", "trains"]


def test_a_job_whose_status_cannot_be_read_is_left_and_takes_nobodys_place(etcd: Ended) -> None:
    etcd.ended("damaged", 3.0)
    etcd.put(etcd.keys.job_status("damaged"), b"\x00")
    etcd.ended("kept", 2.0)
    assert etcd.settle(1) == ["damaged", "kept"]
    assert etcd.settle(0) == ["damaged"]


def test_a_job_is_cleared_before_it_is_forgotten(etcd: Ended) -> None:
    etcd.ended("a", 1.0)
    etcd.put(etcd.keys.job_scale("a"), ScaleRecord(workers=1))
    (write,) = etcd.decided(0)
    assert write.why == "cleared after its end"
    etcd.write(write)
    (write,) = etcd.decided(0)
    assert write.why.startswith("forgotten")


def test_many_are_forgotten_a_few_at_a_time(etcd: Ended) -> None:
    for number in range(2 * MOST_AT_ONCE + 3):
        etcd.ended(f"a{number}", float(number))
    assert len(etcd.decided(3)) == MOST_AT_ONCE
    assert len(etcd.settle(3)) == 3


def test_a_late_write_does_nothing_to_a_later_job_of_the_name(etcd: Ended) -> None:
    etcd.ended("a", 1.0)
    etcd.put(etcd.keys.job_scale("a"), ScaleRecord(workers=1))
    (clearing,) = etcd.decided(0)
    _, compared = forgetting(etcd.keys, etcd.view.jobs[JobName("a")])
    etcd.settle(0)
    etcd.job("a")
    assert not etcd.holds(compared)
    assert not all(map(etcd.holds, clearing.compares))
    etcd.ended("a", 1.0)
    assert not etcd.holds(compared)
    assert not all(map(etcd.holds, clearing.compares))
