"""Every key has one spelling, and a key's name says what it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.errors import UsageError
from elasticps.store import KeyKind, Keys, ParsedKey

KEYS = Keys("lab-1")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)

LAYOUT = [
    (KEYS.meta, "meta", ParsedKey(kind=KeyKind.META)),
    (KEYS.leader, "leader", ParsedKey(kind=KeyKind.LEADER)),
    (KEYS.rebalance, "rebalance", ParsedKey(kind=KeyKind.REBALANCE)),
    (KEYS.node("n.1"), "nodes/n.1", ParsedKey(kind=KeyKind.NODE, node="n.1")),
    (KEYS.drain("n1"), "drains/n1", ParsedKey(kind=KeyKind.DRAIN, node="n1")),
    (KEYS.request("0af3"), "requests/0af3", ParsedKey(kind=KeyKind.REQUEST)),
    (KEYS.job_spec("j"), "jobs/j/spec", ParsedKey(kind=KeyKind.JOB_SPEC, job="j")),
    (KEYS.job_status("j"), "jobs/j/status", ParsedKey(kind=KeyKind.JOB_STATUS, job="j")),
    (
        KEYS.job_checkpoint("j"),
        "jobs/j/checkpoint",
        ParsedKey(kind=KeyKind.JOB_CHECKPOINT, job="j"),
    ),
    (KEYS.job_scale("j"), "jobs/j/scale", ParsedKey(kind=KeyKind.JOB_SCALE, job="j")),
    (KEYS.job_model("j"), "jobs/j/model", ParsedKey(kind=KeyKind.JOB_MODEL, job="j")),
    (
        KEYS.worker("j", "n.1.7"),
        "jobs/j/workers/n.1.7",
        ParsedKey(kind=KeyKind.WORKER, job="j", node="n.1", worker="n.1.7"),
    ),
    (
        KEYS.plan_part("j", 12),
        "jobs/j/plan/00012",
        ParsedKey(kind=KeyKind.PLAN_PART, job="j", part=12),
    ),
    (
        KEYS.report("j", "n1"),
        "jobs/j/reports/n1",
        ParsedKey(kind=KeyKind.REPORT, job="j", node="n1"),
    ),
]


@pytest.mark.parametrize(("key", "tail", "parsed"), LAYOUT)
def test_a_key_is_spelled_by_the_layout_and_read_back(
    key: str, tail: str, parsed: ParsedKey
) -> None:
    assert key == f"/elasticps/lab-1/{tail}"
    assert KEYS.parse(key) == parsed


def test_prefixes_hold_their_keys_and_no_neighbours() -> None:
    assert KEYS.node("n1").startswith(KEYS.nodes)
    assert KEYS.drain("n1").startswith(KEYS.drains)
    assert KEYS.request("0af3").startswith(KEYS.requests)
    assert KEYS.job_spec("j").startswith(KEYS.job("j"))
    assert KEYS.job("j").startswith(KEYS.jobs)
    assert KEYS.worker("j", "n.0").startswith(KEYS.workers("j"))
    assert KEYS.plan_part("j", 0).startswith(KEYS.plan("j"))
    assert KEYS.report("j", "n").startswith(KEYS.reports("j"))
    assert not KEYS.job_spec("j2").startswith(KEYS.job("j"))
    assert not Keys("lab-10").leader.startswith(KEYS.root)


def test_plan_parts_sort_by_their_number() -> None:
    parts = [KEYS.plan_part("j", index) for index in (0, 9, 10, 99_999)]
    assert parts == sorted(parts)


@settings(max_examples=50, deadline=None)
@given(job=NAMES, node=NAMES, number=st.integers(0, 10**6))
def test_any_valid_names_are_read_back(job: str, node: str, number: int) -> None:
    worker = KEYS.parse(KEYS.worker(job, f"{node}.{number}"))
    assert worker == ParsedKey(kind=KeyKind.WORKER, job=job, node=node, worker=f"{node}.{number}")
    assert KEYS.parse(KEYS.report(job, node)) == ParsedKey(kind=KeyKind.REPORT, job=job, node=node)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_other_key_is_unknown_and_never_an_error(tail: str) -> None:
    assert KEYS.parse(tail) is None
    parsed = KEYS.parse(KEYS.root + tail)
    assert parsed is None or KEYS.root + tail in {
        KEYS.meta,
        KEYS.leader,
        KEYS.rebalance,
        KEYS.nodes + str(parsed.node),
        KEYS.drains + str(parsed.node),
    }


@pytest.mark.parametrize(
    "tail",
    [
        "",
        "metadata",
        "nodes/",
        "nodes/a/b",
        "jobs/j",
        "jobs/j/",
        "jobs//spec",
        "jobs/j/plan/1",
        "jobs/j/plan/000001",
        "jobs/j/plan/0000x",
        "jobs/j/workers/n",
        "jobs/j/workers/n.x",
        "jobs/j/workers/.1",
        "jobs/j/reports/",
        "jobs/j/spec/x",
    ],
)
def test_a_key_that_is_nearly_one_of_ours_is_unknown(tail: str) -> None:
    assert KEYS.parse(KEYS.root + tail) is None


def test_a_key_of_another_cluster_is_unknown() -> None:
    assert KEYS.parse(Keys("lab-2").leader) is None


@pytest.mark.parametrize("cluster", ["", "-a", "A", "a/b", "a\n", "a" * 64, "ä", "a.b"])
def test_a_bad_cluster_name_is_refused(cluster: str) -> None:
    with pytest.raises(UsageError) as caught:
        Keys(cluster)
    assert caught.value.field == "cluster"


@pytest.mark.parametrize("name", ["", "a/b", "..", "<script>", "a\r\n", "a" * 129, "-a", "a b"])
def test_a_bad_node_or_job_name_is_refused(name: str) -> None:
    for spell, field in (
        (KEYS.node, "node"),
        (KEYS.drain, "node"),
        (KEYS.job_spec, "job"),
        (lambda name: KEYS.report("j", name), "node"),
        (lambda name: KEYS.worker("j", f"{name}.1"), "uid"),
    ):
        with pytest.raises(UsageError) as caught:
            spell(name)
        assert caught.value.field == field


@pytest.mark.parametrize("index", [-1, 100_000])
def test_a_plan_part_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(UsageError) as caught:
        KEYS.plan_part("j", index)
    assert caught.value.field == "index"
