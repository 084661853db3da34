"""The timeline: read in pages, resumed, and bounded."""

from __future__ import annotations

import pytest

from elasticps.core.ids import JobName, NodeId
from elasticps.core.records import JobState, JobStatus
from elasticps.daemon.timeline import Event, Timeline
from elasticps.errors import UsageError
from tests.support.contents import Contents


class Seen(Contents):
    def __init__(self, kept: int = 1000) -> None:
        super().__init__()
        self.timeline = Timeline(self.view, kept=kept, now=lambda: float(self.revision))
        self.put(self.keys.leader, b"a")
        self.timeline.look()

    def joins(self, *names: str) -> None:
        for name in names:
            self.node(name)
            self.timeline.look()


def nodes(events: tuple[Event, ...]) -> list[str | None]:
    return [event.node for event in events]


def test_what_there_was_before_the_first_look_is_no_event() -> None:
    seen = Seen()
    assert seen.timeline.page().events == ()
    assert seen.timeline.picture.leader == "a"


def test_without_an_id_the_newest_come_and_oldest_of_them_first() -> None:
    seen = Seen()
    seen.joins("a", "b", "c")
    page = seen.timeline.page(limit=2)
    assert nodes(page.events) == ["b", "c"]
    assert page.missed
    assert not seen.timeline.page(limit=3).missed


def test_pages_follow_each_other_without_gap_or_repeat() -> None:
    seen = Seen()
    start = seen.timeline.newest
    names = [f"n{number:02}" for number in range(25)]
    seen.joins(*names)
    found: list[str | None] = []
    after = start
    while True:
        page = seen.timeline.page(after, limit=4)
        found += nodes(page.events)
        assert not page.missed
        if not page.events:
            assert page.next == seen.timeline.newest == after
            break
        after = page.next
    assert found == names


def test_a_filter_skips_and_the_next_page_does_not_look_at_it_again() -> None:
    seen = Seen()
    start = seen.timeline.newest
    seen.joins("a", "b")
    seen.job("j")
    seen.timeline.look()
    assert nodes(seen.timeline.page(start, node=NodeId("b")).events) == ["b"]
    page = seen.timeline.page(start, job=JobName("j"))
    assert [event.what for event in page.events] == ["j submitted: train.py"]
    assert seen.timeline.page(page.next, job=JobName("j")).events == ()


def test_a_job_is_not_told_what_happened_to_an_earlier_one_of_its_name() -> None:
    seen = Seen()
    start = seen.timeline.newest
    key, name = seen.keys.job_status("j"), JobName("j")
    first = seen.job("j").key
    seen.timeline.look()
    seen.put(key, JobStatus(state=JobState.FAILED, reason="no idea"))
    seen.timeline.look()
    seen.delete(key)
    seen.delete(seen.keys.job_spec("j"))
    seen.timeline.look()
    told = seen.timeline.page(start, job=name).events
    whats = ["j submitted: train.py", "j failed: no idea", "j is forgotten"]
    assert [(event.what, event.job_key) for event in told] == [(what, first) for what in whats]

    second = seen.job("j").key
    seen.timeline.look()
    (only,) = seen.timeline.page(start, job=name).events
    assert (only.what, only.job_key) == ("j submitted: train.py", second)
    assert len(seen.timeline.page(start).events) == 4


def test_ring_forgets_the_oldest_and_says_so() -> None:
    seen = Seen(kept=3)
    start = seen.timeline.newest
    seen.joins("a", "b", "c")
    second = seen.timeline.page(start, limit=1).next
    assert not seen.timeline.page(start).missed
    seen.joins("d")
    assert seen.timeline.page(start).missed
    assert nodes(seen.timeline.page(start).events) == ["b", "c", "d"]
    assert not seen.timeline.page(second).missed


def test_id_of_another_life_gives_all_that_is_kept_and_says_that_some_may_be_missing() -> None:
    seen, other = Seen(), Seen()
    other.joins("x", "y", "z")
    seen.joins("a", "b")
    page = seen.timeline.page(other.timeline.newest)
    assert (nodes(page.events), page.missed) == (["a", "b"], True)
    assert seen.timeline.page(page.next).events == ()


@pytest.mark.parametrize("after", ["", "7", "zz-1", "0123abcd-", "0123abcd-x", "0123ABCD-1"])
def test_what_is_no_id_is_refused_and_named(after: str) -> None:
    with pytest.raises(UsageError) as refused:
        Seen().timeline.page(after)
    assert refused.value.field == "after"


def test_subscriber_hears_each_event_once_until_it_leaves() -> None:
    seen = Seen()
    heard: list[Event] = []
    leave = seen.timeline.subscribe(heard.append)
    seen.joins("a", "b")
    leave()
    seen.joins("c")
    assert nodes(tuple(heard)) == ["a", "b"]
    assert tuple(heard) == seen.timeline.page(limit=3).events[:2]
