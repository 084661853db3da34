"""The cost model: what must hold of every prediction, and cases from the literature."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticps.core.choices import CANDIDATES, CODECS, Candidate, choose
from elasticps.core.cost import Costs, Link, Prediction, Setting, measured_link, predict
from elasticps.core.measured import DONE, CodecSpeed, Measured, from_metrics, to_metrics

MODEL = 4_000_000


def of(strategy: str, codec: str = "none") -> Candidate:
    (found,) = [each for each in CANDIDATES if (each.strategy, each.codec) == (strategy, codec)]
    return found


def fast(**changes: object) -> Measured:
    """Three workers whose links are so fast that all measured times are those of processors."""
    speeds = {name: CodecSpeed(fraction=0.25, encode_s=0.002, decode_s=0.001) for name in CODECS}
    measured = Measured(
        steps=5,
        workers=3,
        model_bytes=MODEL,
        largest_parameter_bytes=MODEL // 10,
        compute_s=0.02,
        optimizer_s=0.003,
        copy_s=0.001,
        exchange_s=0.03,
        pull_s=0.01,
        vote_s=0.002,
        sum_s=0.01,
        fetch_s=0.005,
        bytes_per_s=1e10,
        round_trip_s=1e-5,
        codecs=speeds,
    )
    return msgspec.structs.replace(measured, **changes)


THREE = Setting(nodes=3, replicas=2, largest_block_bytes=MODEL // 10)


def step_s(
    candidate: Candidate,
    link: Link | None = None,
    *,
    measured: Measured | None = None,
    setting: Setting = THREE,
) -> float:
    return predict(Costs(measured or fast(), setting, link), candidate).step_s


links = st.builds(
    Link,
    bytes_per_s=st.floats(1e4, 1e9),
    round_trip_s=st.floats(1e-4, 1.0),
)
settings = st.builds(
    Setting,
    nodes=st.integers(2, 16),
    replicas=st.integers(1, 4),
    largest_block_bytes=st.integers(1, MODEL),
)
candidates = st.sampled_from(CANDIDATES)


@given(candidates, links, settings, st.floats(1, 100))
def test_more_bandwidth_never_makes_a_step_slower(
    candidate: Candidate, link: Link, setting: Setting, times: float
) -> None:
    wider = Link(bytes_per_s=times * link.bytes_per_s, round_trip_s=link.round_trip_s)
    assert step_s(candidate, wider, setting=setting) <= step_s(candidate, link, setting=setting)


@given(candidates, links, settings, st.floats(1, 100))
def test_more_latency_never_makes_a_step_quicker(
    candidate: Candidate, link: Link, setting: Setting, times: float
) -> None:
    longer = Link(bytes_per_s=link.bytes_per_s, round_trip_s=times * link.round_trip_s)
    assert step_s(candidate, longer, setting=setting) >= step_s(candidate, link, setting=setting)


@given(links, settings)
def test_fewer_exchanges_never_make_a_step_slower(link: Link, setting: Setting) -> None:
    times = [step_s(of(f"local-sgd:h={h}"), link, setting=setting) for h in (4, 16, 64)]
    assert times == sorted(times, reverse=True)


@given(candidates, links, settings, st.integers(0, 3))
def test_more_replicas_never_make_a_step_quicker(
    candidate: Candidate, link: Link, setting: Setting, more: int
) -> None:
    copied = Setting(
        nodes=setting.nodes,
        replicas=setting.replicas + more,
        largest_block_bytes=setting.largest_block_bytes,
    )
    before = step_s(candidate, link, setting=setting)
    assert step_s(candidate, link, setting=copied) >= before * (1 - 1e-9)


@given(links, settings)
def test_a_step_is_never_quicker_than_its_computing(link: Link, setting: Setting) -> None:
    for candidate in CANDIDATES:
        prediction = predict(Costs(fast(), setting, link), candidate)
        assert prediction.step_s >= fast().compute_s
        assert min(prediction.parts.values()) >= 0


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_the_measured_link_gives_the_measured_times_back(nodes: int) -> None:
    measured, setting = fast(), Setting(nodes=nodes, replicas=2, largest_block_bytes=1)
    assert step_s(of("data-parallel"), setting=setting) == pytest.approx(0.02 + 0.03)
    sums = measured.sum_s + measured.copy_s + measured.vote_s
    assert step_s(of("all-reduce"), setting=setting) == pytest.approx(0.02 + 0.003 + sums)


def test_a_slow_link_costs_what_the_literature_says() -> None:
    """Poseidon, table 1: two (n - 1) / n models each way; a ring's sum: the same over the ring."""
    link = Link(bytes_per_s=MODEL, round_trip_s=0.0)
    alone = Setting(nodes=3, replicas=1, largest_block_bytes=1)
    over = step_s(of("data-parallel"), link, setting=alone) - step_s(of("data-parallel"))
    assert over == pytest.approx(2 * 2 / 3, rel=0.01)
    over = step_s(of("all-reduce"), link) - step_s(of("all-reduce"))
    assert over == pytest.approx(2 * 2 / 3, rel=0.01)
    over = step_s(of("gossip"), link) - step_s(of("gossip"))
    assert over == pytest.approx(2, rel=0.01)


def test_replicas_cost_their_copies_and_codecs_save_of_the_push_alone() -> None:
    link = Link(bytes_per_s=MODEL, round_trip_s=0.0)
    whole = predict(Costs(fast(), THREE, link), of("data-parallel"))
    coded = predict(Costs(fast(), THREE, link), of("data-parallel", "int8"))
    assert whole.parts["replicate"] == pytest.approx(1 / 3)
    assert whole.parts["push"] == pytest.approx(2 / 3, rel=0.05)
    assert coded.parts["push"] == pytest.approx(2 / 3 / 4, abs=0.02)
    assert coded.parts["pull"] == whole.parts["pull"]
    assert "pull" in whole.reason


def test_a_block_that_is_most_of_the_model_is_one_servers_burden() -> None:
    link = Link(bytes_per_s=MODEL, round_trip_s=0.0)
    lumpy = Setting(nodes=3, replicas=1, largest_block_bytes=MODEL)
    pull = predict(Costs(fast(), lumpy, link), of("data-parallel")).parts["pull"]
    assert pull == pytest.approx(2, rel=0.01)


def test_one_node_has_no_link_and_one_worker_no_peers() -> None:
    one = Setting(nodes=1, replicas=2, largest_block_bytes=1)
    assert measured_link(fast(), one) is None
    alone = fast(workers=1, sum_s=0.0, fetch_s=0.0, bytes_per_s=0.0, round_trip_s=0.0)
    assert measured_link(alone, THREE) is None
    for candidate in CANDIDATES:
        assert step_s(candidate, measured=alone, setting=one) >= alone.compute_s


def test_a_link_means_nothing_to_one_node_and_much_to_one_worker_of_many_servers() -> None:
    link = Link(bytes_per_s=MODEL, round_trip_s=1.0)
    one = Setting(nodes=1, replicas=2, largest_block_bytes=1)
    for candidate in CANDIDATES:
        assert step_s(candidate, link, setting=one) == step_s(candidate, setting=one)
    alone = fast(workers=1, bytes_per_s=0.0)
    bare = Setting(nodes=4, replicas=1, largest_block_bytes=1)
    pull = predict(Costs(alone, bare, link), of("data-parallel")).parts["pull"]
    assert pull == pytest.approx(3 / 4 + 1.0, rel=0.02)


# -- choosing -----------------------------------------------------------------------------------


def predictions(link: Link | None = None) -> list[Prediction]:
    costs = Costs(fast(), THREE, link)
    return [predict(costs, candidate) for candidate in CANDIDATES]


def test_only_exact_choices_are_taken_unless_told_otherwise() -> None:
    slow = predictions(Link(bytes_per_s=1e6, round_trip_s=0.01))
    assert choose(slow, approximate=False).candidate == of("all-reduce")
    assert choose(slow, approximate=True).candidate == of("local-sgd:h=64")


def test_a_job_with_checkpoints_stays_with_the_shards() -> None:
    slow = predictions(Link(bytes_per_s=1e6, round_trip_s=0.01))
    chosen = choose(slow, approximate=False, checkpoints=True)
    assert chosen.candidate == of("data-parallel")


def test_what_is_hardly_slower_and_nearer_to_synchronous_is_taken() -> None:
    def takes(step_s: float) -> Prediction:
        return Prediction(candidate=of("data-parallel"), parts={"compute": step_s, "push": 0.0})

    other = Prediction(candidate=of("all-reduce"), parts={"compute": 1.0, "sum": 0.0})
    assert choose([other, takes(1.09)], approximate=False).candidate == of("data-parallel")
    assert choose([other, takes(1.11)], approximate=False).candidate == of("all-reduce")


# -- as numbers of a job's status ---------------------------------------------------------------


def test_what_was_measured_survives_the_jobs_status() -> None:
    metrics: dict[str, float | None] = {**to_metrics(fast()), DONE: 1.0, "loss": 0.5}
    assert from_metrics(metrics) == fast()


@pytest.mark.parametrize("lost", ["auto/vote_s", "auto/codec/int8/encode_s"])
def test_half_of_it_is_nothing(lost: str) -> None:
    metrics: dict[str, float | None] = {**to_metrics(fast())}
    assert from_metrics({**metrics, lost: None}) is None
    del metrics[lost]
    assert from_metrics(metrics) is None
    assert from_metrics({}) is None
