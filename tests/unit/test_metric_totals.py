"""Counts of processes that come and go, summed; and how late a loop was."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from elasticps.core.ids import Generation, JobKey, JobName, Round, ServerId
from elasticps.daemon.metrics.loop_lag import REMEMBERED_S, LoopLag
from elasticps.daemon.metrics.tallies import FORGOTTEN_AFTER_S, Tallies
from elasticps.daemon.metrics.totals import Buckets, Totals
from elasticps.wire.control_messages import Progress, ServerLoad
from elasticps.wire.tallies import JobCounts, JobHolding, JobTally, ServerTally, Traffic
from elasticps.wire.traffic import PeerTraffic
from tests.support.processes import until

ONE, OTHER = ServerId("n1/a"), ServerId("n1/b")
JOB, KEY = JobName("j"), JobKey(7)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans()), min_size=1, max_size=40
    )
)
def test_totals_never_fall_and_are_the_sum_of_what_each_life_counted(
    words: list[tuple[str, int, bool]],
) -> None:
    totals: Totals[str] = Totals()
    counts: dict[str, int] = {}
    counted = 0
    for life, more, ends in words:
        counts[life] = counts.get(life, 0) + more
        counted += more
        totals.heard(life, {"pushes": counts[life]})
        assert totals.of("pushes") == counted
        if ends:
            totals.gone(life)
            counts.pop(life)


@given(st.lists(st.floats(0, 10), max_size=50))
def test_buckets_hold_every_observation_once(values: list[float]) -> None:
    buckets = Buckets((0.1, 1.0, 5.0))
    for value in values:
        buckets.observe(value)
    rows = dict(buckets.cumulative())
    assert rows["+Inf"] == buckets.count == len(values)
    for bound in (0.1, 1.0, 5.0):
        assert rows[str(bound)] == sum(value <= bound for value in values)


def load(counts: JobCounts, job: int = 7, name: JobName = JOB, **tally: object) -> ServerLoad:
    row = JobTally(job=JobKey(job), name=name, counts=counts, holding=JobHolding(primary=3))
    told = ServerTally(jobs=(row,), **tally)  # type: ignore[arg-type]
    return ServerLoad(blocks=0, bytes_held=0, pushes=0, rounds=0, tally=told)


def test_a_server_that_is_started_again_counts_on() -> None:
    tallies = Tallies()
    traffic = {"unix": Traffic(received=100, sent=10)}
    tallies.served(ONE, load(JobCounts(pushes=5), traffic=traffic, refused={"fenced": 2}))
    tallies.server_ended(ONE)
    assert tallies.jobs[JOB].holding.primary == 0
    tallies.served(OTHER, load(JobCounts(pushes=3), traffic=traffic, refused={"fenced": 1}))
    assert tallies.jobs[JOB].served.of("pushes") == 8
    assert tallies.jobs[JOB].holding.primary == 3
    assert (tallies.received.of("unix"), tallies.sent.of("unix")) == (200, 20)
    assert tallies.refused.of("fenced") == 3


def test_what_several_servers_of_a_node_hold_and_did_is_added_up() -> None:
    tallies = Tallies()
    tallies.served(ONE, load(JobCounts(pushes=5), loop_lag_s=0.5))
    tallies.served(OTHER, load(JobCounts(pushes=3), loop_lag_s=0.1))
    tallies.served(ONE, load(JobCounts(pushes=6), loop_lag_s=0.5))
    job = tallies.jobs[JOB]
    assert (job.served.of("pushes"), job.holding.primary) == (9, 6)
    assert tallies.server_loop_lag_s == 0.5
    tallies.server_ended(ONE)
    assert (job.served.of("pushes"), job.holding.primary) == (9, 3)
    assert tallies.server_loop_lag_s == 0.1


def test_a_job_that_a_server_let_go_of_and_took_up_again_counts_on() -> None:
    tallies = Tallies()
    tallies.served(ONE, load(JobCounts(pushes=5)))
    tallies.served(ONE, ServerLoad(blocks=0, bytes_held=0, pushes=0, rounds=0))
    assert tallies.jobs[JOB].holding.primary == 0
    tallies.served(ONE, load(JobCounts(pushes=4)))
    assert tallies.jobs[JOB].served.of("pushes") == 9


def test_a_later_job_of_the_same_name_begins_at_nothing() -> None:
    tallies = Tallies()
    tallies.served(ONE, load(JobCounts(pushes=5), job=7))
    tallies.trained(JOB, KEY, "n1.1", progress(1, 1))
    tallies.served(ONE, load(JobCounts(pushes=4), job=8))
    tallies.served(OTHER, load(JobCounts(pushes=6), job=7))  # a late word of the earlier one
    tallies.trained(JOB, KEY, "n1.1", progress(2, 9))
    job = tallies.jobs[JOB]
    assert (job.key, job.served.of("pushes"), job.holding.primary) == (8, 4, 3)
    assert (job.lives, job.trained.sums) == ({}, {})


def progress(round_: int, pushed: int) -> Progress:
    return Progress(
        round=Round(round_), generation=Generation(1), rank=0, world=1, pushed_bytes=pushed
    )


def test_rounds_of_a_worker_that_joined_late_begin_where_it_joined() -> None:
    tallies = Tallies()
    tallies.trained(JOB, KEY, "n1.1", progress(500, 10))
    tallies.trained(JOB, KEY, "n1.1", progress(510, 30))
    tallies.worker_ended("n1.1")
    assert tallies.jobs[JOB].lives == {}
    tallies.trained(JOB, KEY, "n1.2", progress(700, 5))
    tallies.trained(JOB, KEY, "n1.2", progress(701, 8))
    trained = tallies.jobs[JOB].trained
    assert (trained.of("rounds"), trained.of("pushed_bytes")) == (11, 38)


def test_bytes_between_workers_are_summed_by_transport_over_all_lives() -> None:
    tallies = Tallies()
    for uid in ("n1.1", "n1.2"):
        for nbytes in (10, 30):
            said = replace(progress(1, 0), peer_sent={"tls": nbytes}, peer_received={"gloo": 7})
            tallies.trained(JOB, KEY, uid, said)
        tallies.worker_ended(uid)
    assert tallies.jobs[JOB].peer_sent.sums == {"tls": 60}
    assert tallies.jobs[JOB].peer_received.sums == {"gloo": 14}


@pytest.mark.parametrize(("world", "moved"), [(1, 0), (2, 100), (4, 150)])
def test_a_sum_is_counted_as_a_ring_moves_it(world: int, moved: int) -> None:
    traffic = PeerTraffic()
    traffic.summed(100, world)
    assert traffic.sent == traffic.received == ({"gloo": moved} if moved else {})


def test_jobs_that_ended_long_ago_are_forgotten_and_no_others() -> None:
    tallies = Tallies()
    other = JobName("other")
    tallies.trained(JOB, KEY, "n1.1", progress(1, 1))
    tallies.trained(other, JobKey(8), "n1.2", progress(1, 1))
    known = {JOB: KEY, other: JobKey(8)}
    tallies.forget_ended(known, {KEY, JobKey(8)}, 0.0)
    tallies.forget_ended(known, {KEY}, 10.0)
    tallies.forget_ended(known, {KEY}, 10.0 + FORGOTTEN_AFTER_S)
    assert set(tallies.jobs) == {JOB, other}
    tallies.forget_ended(known, {KEY}, 10.1 + FORGOTTEN_AFTER_S)
    assert set(tallies.jobs) == {JOB}


def test_a_job_whose_name_another_has_is_forgotten_at_once() -> None:
    tallies = Tallies()
    tallies.trained(JOB, KEY, "n1.1", progress(1, 1))
    tallies.forget_ended({}, (), 0.0)
    assert set(tallies.jobs) == {JOB}  # it may still be scraped
    tallies.forget_ended({JOB: JobKey(9)}, {JobKey(9)}, 1.0)
    assert tallies.jobs == {}


def test_the_longest_lag_is_remembered_for_a_minute() -> None:
    lag = LoopLag()
    for now_s, lag_s in ((0.0, 0.5), (10.0, 0.1), (20.0, 0.2), (30.0, 0.05)):
        lag.took(lag_s, now_s)
    assert lag.longest(30.0) == 0.5
    assert lag.longest(REMEMBERED_S + 1) == 0.2
    assert lag.longest(REMEMBERED_S + 21) == 0.05
    assert lag.longest(REMEMBERED_S + 31) == 0.0
    assert lag.seen.count == 4


async def test_a_loop_that_is_held_up_is_seen_to_lag() -> None:
    lag = LoopLag()
    lag.start()
    time.sleep(0.4)
    await until(lambda: lag.longest(time.monotonic()) >= 0.25, timeout_s=30)
    lag.stop()
    seen = lag.seen.count
    await asyncio.sleep(0)
    assert lag.seen.count == seen
