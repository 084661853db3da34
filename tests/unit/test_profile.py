"""A profile: the ring that records, the trace that is made of it, and what it says."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time

import msgspec
import pytest
import torch

from elasticps.core.ids import JobKey
from elasticps.core.spans import ProcessSpans, Span, length, union, within, without
from elasticps.core.step_profile import StepProfile, in_the_steps, step_profile
from elasticps.core.trace import TraceEvent, trace_events
from elasticps.daemon.clocks import clock_ahead
from elasticps.daemon.recordings import Recordings
from elasticps.errors import UsageError
from elasticps.wire.control_messages import Control, RecordedSpans, RecordSpans, decode_control
from elasticps.wire.messages import encode
from elasticps.wire.recorded import SPANS_A_MESSAGE, recorded
from elasticps.wire.spans import Spans
from elasticps.worker.step_recorder import ModelHooks

MS = 1_000_000
JOB = JobKey(7)


class Ticks:
    """A clock that goes on by one at each look."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


# -- the recorder ---------------------------------------------------------------------------------


def test_off_nothing_is_recorded_and_the_clock_is_not_read() -> None:
    ticks = Ticks()
    spans = Spans(ticks)
    spans.end("push", spans.begin())
    assert ticks.now == 0
    assert spans.stop() == ([], 0)


def test_what_began_before_or_ends_after_the_recording_is_not_in_it() -> None:
    spans = Spans(Ticks())
    before = spans.begin()
    spans.start(10, 1.0)
    spans.end("before", before)
    inside = spans.begin()
    spans.end("inside", inside, block=3, nbytes=8, via="unix", round_=2)
    late = spans.begin()
    assert spans.stop() == ([Span("inside", inside, 1, 3, 8, "unix", 2)], 0)
    spans.end("late", late)
    assert spans.stop() == ([], 0)


def test_the_ring_keeps_the_newest_and_counts_what_it_lost() -> None:
    spans = Spans(Ticks())
    spans.start(4, 1.0)
    for number in range(10):
        spans.end(str(number), spans.begin())
    found, left_out = spans.stop()
    assert [span.name for span in found] == ["6", "7", "8", "9"]
    assert left_out == 6


def test_a_recording_that_nobody_stops_ends_by_itself() -> None:
    ticks = Ticks()
    spans = Spans(ticks)
    spans.start(10, 1e-7)  # 100 ticks
    spans.end("in time", spans.begin())
    ticks.now += 100
    spans.end("late", spans.begin())
    assert not spans.on
    assert [span.name for span in spans.stop()[0]] == ["in time"]


@pytest.mark.parametrize("many", [0, 1, SPANS_A_MESSAGE, 2 * SPANS_A_MESSAGE + 5])
def test_a_recording_travels_in_messages_that_fit_the_channel(many: int) -> None:
    spans = Spans(lambda: 10**15)
    spans.start(1 << 20, 60.0)
    for number in range(many):
        spans.add("push", 10**15 + number, 10**15 + number, 1 << 30, 1 << 30, "unix", 1 << 40)
    spans.add("last", 1, 2)
    parts = list(recorded(JOB, spans))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert sum(len(part.spans) for part in parts) == many + 1
    assert all(len(encode(part)) < 1 << 20 for part in parts)
    assert [decode_control(encode(part)) for part in parts] == parts


def test_a_models_calls_and_gradients_are_spans_and_leave_no_hooks_behind() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    spans = Spans()
    spans.start(100, 60.0)
    began = time.monotonic_ns()
    hooks = ModelHooks(model, spans)
    for _ in range(2):  # gradients are accumulated
        model(torch.ones(3, 4)).sum().backward()
    hooks.end_backward()
    twin = copy.deepcopy(model)
    hooks.remove()
    twin(torch.ones(3, 4)).sum().backward()
    model(torch.ones(3, 4)).sum().backward()
    found, _ = spans.stop()
    assert [span.name for span in found] == ["forward", "backward"] * 2
    assert found[0].began_ns >= began
    for before, after in itertools.pairwise(found):
        assert before.ended_ns <= after.began_ns


# -- time as intervals ----------------------------------------------------------------------------


def test_intervals_are_joined_cut_and_taken_away() -> None:
    joined = union([(5, 9), (1, 3), (2, 4), (4, 5), (20, 30), (7, 7)])
    assert joined == [(1, 9), (20, 30)]
    assert within(joined, [(0, 2), (8, 25)]) == [(1, 2), (8, 9), (20, 25)]
    assert without(joined, [(2, 4), (6, 22)]) == [(1, 2), (4, 6), (22, 30)]
    assert length(joined) == 18


# -- the trace ------------------------------------------------------------------------------------


def worker(rank: int, *spans: Span, node: str = "n1") -> ProcessSpans:
    return ProcessSpans(node=node, name=f"{node}.{rank}", rank=rank, spans=spans)


def server(*spans: Span, node: str = "n1") -> ProcessSpans:
    return ProcessSpans(node=node, name="shard server", spans=spans)


def at(name: str, began_ms: float, ended_ms: float, **what: object) -> Span:
    began, ended = int(began_ms * MS), int(ended_ms * MS)
    via = what.get("via", "")
    row = [name, began, ended - began, what.get("block"), what.get("nbytes", 0), via, 1]
    return msgspec.convert(row, Span)


def overlap_halfway(events: list[TraceEvent]) -> list[tuple[TraceEvent, TraceEvent]]:
    """Pairs on one line of which neither lies within the other, though they share time."""
    found = []
    for one, other in itertools.combinations([each for each in events if each.ph == "X"], 2):
        assert one.ts is not None
        assert one.dur is not None
        assert other.ts is not None
        assert other.dur is not None
        if (one.pid, one.tid) != (other.pid, other.tid):
            continue
        first, second = sorted((one, other), key=lambda each: (each.ts, -(each.dur or 0)))
        first_end, second_end = first.ts + first.dur, second.ts + second.dur  # type: ignore[operator]
        if second.ts < first_end < second_end:  # type: ignore[operator]
            found.append((first, second))
    return found


def test_requests_that_are_under_way_together_have_lines_of_their_own() -> None:
    pushes = [at("push", number, number + 5, block=number + 1, nbytes=4) for number in range(20)]
    process = worker(0, at("step", 0, 30), at("forward", 1, 2), at("wait", 3, 28), *pushes)
    events = list(trace_events([process, server(at("apply", 3, 4), at("wait", 1, 9))]))
    spans = [event for event in events if event.ph == "X"]
    assert overlap_halfway(events) == []
    assert len({event.tid for event in spans if event.name == "push"}) == 5
    assert {event.tid for event in spans if event.name in ("step", "forward")} == {1}
    names = {event.args["name"] for event in events if event.name == "process_name"}
    assert names == {"n1: rank 0, n1.0", "n1: shard server"}
    one = msgspec.to_builtins(next(event for event in spans if event.name == "push"))
    assert one == {
        "ph": "X",
        "pid": 1,
        "tid": 2,
        "name": "push",
        "cat": "worker",
        "ts": 0.0,
        "dur": 5000.0,
        "args": {"round": 1, "block": 1, "bytes": 4},
    }


def test_clocks_that_are_apart_are_put_together() -> None:
    here = worker(0, at("step", 100, 110))
    there = msgspec.structs.replace(worker(1, at("step", 1100, 1110)), ahead_ns=1000 * MS)
    events = trace_events([here.on_one_clock(), there.on_one_clock()])
    assert [event.ts for event in events if event.ph == "X"] == [0.0, 0.0]


def test_what_servers_did_around_the_steps_is_left_out() -> None:
    spans = (at("apply", 1, 2), at("apply", 9, 11), at("apply", 15, 16), at("apply", 21, 22))
    kept = in_the_steps([worker(0, at("step", 10, 20)), server(*spans)])
    assert kept[1].spans == spans[1:3]


# -- what it says ---------------------------------------------------------------------------------


def step(
    rank: int,
    computed_ms: float,
    *,
    pushed_ms: float = 70,
    pulled_ms: float = 100,
    ends_ms: float = 100,
    via: str = "tcp",
) -> ProcessSpans:
    """A step of ``ends_ms``: half of the computing is forward."""
    return worker(
        rank,
        at("step", 0, ends_ms),
        at("forward", 0, computed_ms / 2),
        at("backward", computed_ms / 2, computed_ms),
        at("optimizer.step", computed_ms, ends_ms),
        at("wait", computed_ms, ends_ms),
        at("push", computed_ms, pushed_ms - 1, nbytes=1_000_000, via=via),
        at("push", computed_ms + 1, pushed_ms, nbytes=1_000_000, via=via),
        at("vote", pushed_ms, pushed_ms + 1),
        at("pull", pushed_ms + 1, pulled_ms),
        node=f"n{rank}",
    )


def profile(*processes: ProcessSpans, codec: str = "none") -> StepProfile:
    found = step_profile(processes, codec)
    for each in found.workers:
        parts = each.compute_s + each.others_s + each.exchange_s
        assert parts == pytest.approx(each.step_s, abs=1e-9)
    return found


def test_a_steps_time_is_told_apart_to_the_last_millisecond() -> None:
    found = profile(step(0, 20, pushed_ms=70), step(1, 30, pushed_ms=70))
    first, second = found.workers
    assert (first.forward_s, first.backward_s, first.script_s) == pytest.approx((0.01, 0.01, 0))
    assert (first.others_s, first.push_s) == pytest.approx((0.01, 0.04))
    assert (first.vote_s, first.pull_s, first.rest_s) == pytest.approx((0.001, 0.029, 0))
    assert second.others_s == 0
    assert first.pushed_bytes == 2_000_000
    assert found.steps == 1
    assert found.step_s == pytest.approx(0.1)


def test_a_round_by_one_request_counts_its_bytes_and_is_in_the_rest() -> None:
    spans = (at("step", 0, 100), at("wait", 20, 100), at("round", 21, 99, nbytes=3_000, via="tcp"))
    (found,) = profile(worker(0, *spans)).workers
    assert (found.pushed_bytes, found.over_network) == (3_000, 1.0)
    assert (found.push_s, found.rest_s) == pytest.approx((0, 0.08))


def test_where_rounds_do_not_wait_for_all_no_wait_is_for_others() -> None:
    found = step_profile([step(0, 20), step(1, 60)], in_step=False)
    assert [each.others_s for each in found.workers] == [0, 0]


@pytest.mark.parametrize(
    ("processes", "codec", "bound", "says"),
    [
        ([step(0, 20), step(1, 25)], "none", "wire", "try --codec int8"),
        ([step(0, 20), step(1, 25)], "int8", "wire", "try --strategy local-sgd"),
        ([step(0, 20, via="unix"), step(1, 25)], "none", "wire", "try --codec int8"),
        ([step(0, 20, via="unix")], "none", "exchange", "larger batches"),
        ([step(0, 80, pushed_ms=85)], "none", "compute", "computes in 80% of a step"),
        (
            [step(0, 10, pushed_ms=80), step(1, 60, pushed_ms=80), step(2, 12, pushed_ms=80)],
            "none",
            "slowest worker",
            "n1.1 on n1: it computes for 60.0 ms a step, the median of the others 11.0 ms",
        ),
        ([step(0, 20), server(at("apply", 30, 80), node="n3")], "none", "apply", "on n3"),
        ([step(0, 20), server(at("replicate", 25, 69))], "none", "replication", "--replicas 1"),
        (
            [step(0, 20, pushed_ms=30, pulled_ms=31), server()],
            "none",
            "wire",
            "try --codec",
        ),
        ([], "none", "", "no worker ended a step"),
    ],
)
def test_what_bounds_a_step_is_told_with_what_to_do(
    processes: list[ProcessSpans], codec: str, bound: str, says: str
) -> None:
    found = profile(*processes, codec=codec)
    assert found.bound == bound
    assert says in found.advice


# -- clocks ---------------------------------------------------------------------------------------


async def test_the_clock_of_another_node_is_read_within_the_error_that_is_told() -> None:
    ahead = 3_600 * 10**9

    async def read() -> int:
        await asyncio.sleep(0)
        theirs = time.monotonic_ns() + ahead
        await asyncio.sleep(0)
        return theirs

    found, error = await clock_ahead(read)
    assert abs(found - ahead) <= error


# -- the daemon's part ----------------------------------------------------------------------------


class Children:
    """Hears what a daemon says to its children."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Control]] = []
        self.recordings = Recordings(
            lambda uid, message: self.heard.append((uid, message)),
            self.tell_servers,
        )

    def tell_servers(self, message: Control) -> list[str]:
        self.heard.append(("", message))
        return ["shard-server", "shard-server-2"]

    def ask(self, *uids: str, wait_s: float = 60) -> asyncio.Task[list[ProcessSpans]]:
        ranks = {uid: rank for rank, uid in enumerate(uids)}
        return asyncio.create_task(self.recordings.of_workers("n1", JOB, ranks, 3, wait_s, 100))


async def test_it_is_gathered_until_each_worker_has_said_its_last_or_is_gone() -> None:
    children = Children()
    asking = children.ask("a", "b")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [uid for uid, _ in children.heard] == ["", "a", "b"]
    say = children.recordings.recorded
    say("a", RecordedSpans(JOB, (at("step", 0, 1),), 0, last=False))
    say("a", RecordedSpans(JOB, (at("step", 1, 2),), 4, last=True))
    say("a", RecordedSpans(JOB, (at("step", 2, 3),), 0, last=True))
    say("c", RecordedSpans(JOB, (at("step", 0, 1),), 0, last=True))
    children.recordings.gone("b")
    first, second = await asking
    assert [span.began_ns for span in first.spans] == [0, MS]
    assert (first.left_out, first.rank, second.rank, second.spans) == (4, 0, 1, ())


async def test_what_each_shard_server_of_a_node_did_is_told_by_its_name() -> None:
    recordings = Children().recordings
    asking = asyncio.create_task(recordings.of_servers("n1", JOB))
    await asyncio.sleep(0)
    recordings.recorded("shard-server-2", RecordedSpans(JOB, (at("apply", 0, 1),), 0, last=True))
    recordings.gone("shard-server")
    first, second = await asking
    assert (first.name, len(first.spans)) == ("shard server", 0)
    assert (second.name, len(second.spans)) == ("shard server 2", 1)


async def test_a_worker_that_takes_too_long_is_asked_for_what_it_has() -> None:
    children = Children()
    asking = children.ask("a", wait_s=0)
    while ("a", RecordSpans(JOB)) not in children.heard:
        await asyncio.sleep(0)
    children.recordings.recorded("a", RecordedSpans(JOB, (at("step", 0, 1),), 0, last=True))
    assert len((await asking)[0].spans) == 1


async def test_a_job_is_profiled_once_at_a_time() -> None:
    children = Children()
    asking = children.ask("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="being profiled"):
        await children.ask("a")
    assert len(children.heard) == 2  # and the first one is not disturbed
    children.recordings.gone("a")
    await asking
