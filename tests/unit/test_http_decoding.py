"""Bodies and query strings are read strictly: a struct, or an error that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from elasticps.core.records import JobState
from elasticps.daemon.http.contract import Query
from elasticps.daemon.http.decoding import MAX_DEPTH, from_json, from_query
from elasticps.daemon.http.jobs import LogsQuery
from elasticps.daemon.http.pages import (
    MAX_ROWS,
    MOST_ENDED,
    JobsQuery,
    NodesQuery,
    StateName,
    page,
    without_old,
)
from elasticps.daemon.http.refusals import Refused
from elasticps.daemon.http.submission import JobBody, check_submission
from elasticps.errors import UsageError

JOB = {"argv": ["train.py"], "cwd": "/"}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
NAMES = st.sampled_from([*JobBody.__struct_fields__, "uid", "argv\0"])


Result = TypeVar("Result")


def outcome(of: Callable[[], Result]) -> Result | UsageError:
    """What a call gives, or refuses."""
    try:
        return of()
    except UsageError as error:
        return error


def refusal(content: bytes, wanted: type[msgspec.Struct] = JobBody) -> Refused:
    with pytest.raises(Refused) as caught:
        from_json(content, wanted)
    return caught.value


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xff\xfe{}")
@example(b'\xef\xbb\xbf{"argv": [], "cwd": ""}')
@example("{}".encode("utf-16"))
@example(b'{"argv": ["' + b"1" * 5000 + b'"], "cwd": 1e999999}')
@example(b'{"start_workers": ' + b"9" * 5000 + b"}")
@example(b'"' + b"\\" * 100_001)
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
def test_any_bytes_are_a_job_or_are_refused_with_a_field(content: bytes) -> None:
    result = outcome(lambda: from_json(content, JobBody))
    if isinstance(result, UsageError):
        assert result.field
        assert result.limit
        assert len(result.what) < 1000


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, VALUES))
def test_any_json_is_a_job_or_is_refused_by_the_name_of_what_is_wrong(wish: dict[str, Any]) -> None:
    content = json.dumps(JOB | wish).encode()
    result = outcome(lambda: check_submission(from_json(content, JobBody)))
    if isinstance(result, UsageError):
        assert result.field == "body" or result.field in JOB | wish, result
    else:
        assert set(wish) <= set(JobBody.__struct_fields__)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), VALUES), st.data())
def test_a_name_that_is_there_twice_is_refused_wherever_it_is(
    inner: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(inner))) if inner else "a"
    spelled = json.dumps(inner)[1:-1]
    twice = ", ".join(filter(None, [spelled, f"{json.dumps(name)}: 1"]))
    if inner:
        content = f'{{"anything": [{{{twice}}}]}}'
        assert refusal(content.encode(), Anything).limit == "once"


class Anything(msgspec.Struct):
    anything: Any = None


def test_nesting_is_bounded_and_brackets_in_text_do_not_count() -> None:
    deepest = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert from_json(b'{"anything": ' + deepest + b"}", Anything).anything is not None
    assert refusal(b'{"anything": [' + deepest + b"]}", Anything).limit == f"{MAX_DEPTH} levels"
    text = rb'{"anything": "\\\"' + b"[{" * 1000 + b'"}'
    assert from_json(text, Anything).anything.endswith("[{")


@pytest.mark.parametrize(
    ("content", "field", "limit"),
    [
        (b"[]", "body", "one JSON object"),
        (b"{", "body", "one JSON object"),
        (b"{}", "argv", "required"),
        (b'{"argv": "train.py --fast", "cwd": "/"}', "argv", "array"),
        (b'{"argv": [1], "cwd": "/"}', "argv", "str"),
        (b'{"argv": ["a"], "cwd": "/", "env": {"A": 1}}', "env", "str"),
        (
            b'{"argv": ["a"], "cwd": "/", "consistency": "no"}',
            "consistency",
            "sync, bounded, async",
        ),
        (b'{"argv": ["a"], "cwd": "/", "start_workers": 1.5}', "start_workers", "int"),
        (b'{"argv": ["a"], "cwd": "/", "cwd": "/etc"}', "cwd", "once"),
        (b'{"argv": ["a"], "cwd": "/", "env": {"A": "1", "A": "2"}}', "A", "once"),
    ],
)
def test_what_is_wrong_in_a_body_is_named(content: bytes, field: str, limit: str) -> None:
    error = refusal(content)
    assert (error.field, error.limit) == (field, limit)


def test_an_unknown_name_is_told_with_the_near_one() -> None:
    error = refusal(b'{"argv": ["a"], "cwd": "/", "replica": 1}')
    assert error.field == "replica"
    assert error.hint == "did you mean replicas?"


class Asked(Query, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=1, le=9)] = 5
    name: str = ""
    follow: bool = False


@pytest.mark.parametrize(
    ("pairs", "field", "limit"),
    [
        ([("limit", "0")], "limit", "1 to 9"),
        ([("limit", "ten")], "limit", "1 to 9"),
        ([("limit", "")], "limit", "1 to 9"),
        ([("limit", "1"), ("limit", "2")], "limit", "once"),
        ([("limits", "1")], "limits", "follow, limit, name"),
        ([("follow", "perhaps")], "follow", "bool"),
    ],
)
def test_what_is_wrong_in_a_query_is_named(
    pairs: list[tuple[str, str]], field: str, limit: str
) -> None:
    with pytest.raises(Refused) as caught:
        from_query(pairs, Asked)
    assert (caught.value.field, caught.value.limit) == (field, limit)


@pytest.mark.parametrize("wanted", [Query, JobsQuery, NodesQuery, LogsQuery, Asked])
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_query_is_read_or_refused_with_a_field(
    wanted: type[Query], data: st.DataObject
) -> None:
    names = st.sampled_from([*wanted.__struct_fields__, "x"]) | st.text(max_size=5)
    values = st.integers().map(str) | st.text(max_size=10)
    pairs = data.draw(st.lists(st.tuples(names, values), max_size=3))
    result = outcome(lambda: from_query(pairs, wanted))
    if isinstance(result, UsageError):
        assert result.field in {name[:80] for name, _ in pairs}
        assert result.limit
        return
    assert {name for name, _ in pairs} <= set(wanted.__struct_fields__)
    if isinstance(result, JobsQuery):
        assert 1 <= result.limit <= MAX_ROWS


@settings(max_examples=200, deadline=None)
@given(
    rows=st.sets(st.integers(1, 200)), limit=st.integers(1, 30), gone=st.sets(st.integers(1, 200))
)
def test_pages_together_are_all_rows_once_in_order_even_if_rows_go_meanwhile(
    rows: set[int], limit: int, gone: set[int]
) -> None:
    seen: list[int] = []
    after = 0
    while True:
        some, more = page(rows, lambda row: row, after=after, limit=limit)
        assert len(some) <= limit
        seen += some
        if more is None:
            break
        after = int(more)
        rows = rows - {row for row in gone if row <= after}
    assert seen == sorted(set(seen))
    assert rows <= set(seen)


def test_of_what_has_ended_the_newest_stay_and_all_else_does() -> None:
    runs = [("running", None), ("waiting", None)]
    ended = [(f"job-{number}", float(number % 150)) for number in range(300)]
    rows = [runs[0], *ended, runs[1]]
    kept = without_old(rows, lambda row: row[1])
    assert [row for row in rows if row in kept] == kept
    assert {runs[0], runs[1]} <= set(kept)
    assert len(kept) == MOST_ENDED + 2
    assert min(at for _, at in kept if at is not None) == 100.0
    assert without_old(rows[:50], lambda row: row[1]) == rows[:50]


@pytest.mark.parametrize(
    ("pairs", "taken"),
    [
        ([], set(JobState)),
        ([("active", "true")], {JobState.PENDING, JobState.RUNNING}),
        ([("state", "FAILED")], {JobState.FAILED}),
        ([("state", "FAILED"), ("active", "true")], set()),
    ],
)
def test_jobs_are_filtered_by_state(pairs: list[tuple[str, str]], taken: set[JobState]) -> None:
    assert set(get_args(StateName)) == {state.value for state in JobState}
    asked = from_query(pairs, JobsQuery)
    assert {state for state in JobState if asked.takes(state)} == taken


def test_an_unknown_state_is_told_with_those_that_there_are() -> None:
    with pytest.raises(Refused) as caught:
        from_query([("state", "DONE")], JobsQuery)
    assert caught.value.field == "state"
    assert "FAILED" in (caught.value.limit or "")
