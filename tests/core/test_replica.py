"""A block's decisions on pushes and proofs: each gradient counts once, each round is whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.audit import Tally
from elasticps.core.ids import BlockId, Generation, PlanEpoch, Round, Seq, ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.core.replica import Commit, Push, PushOutcome, Replica, RoundOp, Settled
from tests.support.properties import REPRODUCIBLE

ME = ServerId("a/1")
ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)


def new_primary(*, initialized: bool = True, in_rounds: bool = True) -> Replica:
    replica = Replica(me=ME, in_rounds=in_rounds)
    replica.replication.adopt(Entry(block=BlockId(1), primary=ME, epoch=PlanEpoch(5), fresh=True))
    if initialized:
        replica.initialize(Round(0), digest=0)
    return replica


def push(
    worker: WorkerId, seq: int, number: int = 1, generation: int = 1, *, pushers: int = 2
) -> Push:
    return Push(
        worker=worker,
        seq=Seq(seq),
        round=Round(number),
        generation=Generation(generation),
        pushers=pushers,
    )


def commit(number: int, *contributors: WorkerId, generation: int = 1) -> Commit:
    return Commit(Round(number), Generation(generation), contributors)


def op(number: int, *pushes: tuple[WorkerId, int], generation: int = 1) -> RoundOp:
    rows = tuple((worker, Seq(seq)) for worker, seq in pushes)
    return RoundOp(Round(number), Generation(generation), rows)


def primary_in_round_2() -> Replica:
    """Round 1 was applied with push 4 of ONE and 6 of TWO; ONE has staged push 5 for round 2."""
    replica = new_primary()
    replica.prepare(op(1, (ONE, 4), (TWO, 6), generation=2))
    replica.apply_prepared(1.0)
    assert replica.push(push(ONE, 5, 2, 2)) is PushOutcome.STAGE
    return replica


def primary_that_prepared() -> Replica:
    """Round 2 is prepared in generation 2 with push 5 of ONE and 7 of TWO; round 1 is applied."""
    replica = primary_in_round_2()
    assert replica.push(push(TWO, 7, 2, 2)) is PushOutcome.PREPARE
    replica.prepare(replica.staged_round())
    return replica


# -- pushes in rounds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arriving", "outcome"),
    [
        (push(TWO, 7, 2, 2), PushOutcome.PREPARE),
        (push(TWO, 7, 2, 2, pushers=3), PushOutcome.STAGE),
        (push(ONE, 5, 2, 2), PushOutcome.HELD),
        (push(ONE, 4, 2, 2), PushOutcome.REPEATED),
        (push(TWO, 2, 1, 1), PushOutcome.REPEATED),
        (push(TWO, 7, 2, 1), PushOutcome.STALE_GENERATION),
        (push(ONE, 5, 2, 3), PushOutcome.STAGE),
        (push(ONE, 5, 2, 3, pushers=1), PushOutcome.PREPARE),
        (push(TWO, 7, 1, 2), PushOutcome.OUT_OF_TURN),
        (push(TWO, 7, 3, 2), PushOutcome.OUT_OF_TURN),
    ],
)
def test_a_push_is_staged_held_repeated_or_refused(arriving: Push, outcome: PushOutcome) -> None:
    assert primary_in_round_2().push(arriving) is outcome


@pytest.mark.parametrize(
    ("arriving", "outcome"),
    [
        (push(ONE, 5, 2, 2), PushOutcome.REPEATED),
        (push(THREE, 1, 2, 2), PushOutcome.OUT_OF_TURN),
        (push(ONE, 5, 2, 3), PushOutcome.STAGE),
        (push(ONE, 5, 2, 1), PushOutcome.STALE_GENERATION),
        (push(ONE, 6, 3, 2), PushOutcome.OUT_OF_TURN),
    ],
)
def test_a_prepared_round_takes_no_other_push_of_its_generation(
    arriving: Push, outcome: PushOutcome
) -> None:
    assert primary_that_prepared().push(arriving) is outcome


def test_a_block_without_a_value_takes_no_push() -> None:
    assert new_primary(initialized=False).push(push(ONE, 1)) is PushOutcome.OUT_OF_TURN


def test_a_late_copy_of_an_older_push_does_not_replace_the_newer() -> None:
    replica = primary_in_round_2()
    replica.push(push(ONE, 7, 2, 2, pushers=3))
    assert replica.push(push(ONE, 5, 2, 2)) is PushOutcome.OUT_OF_TURN
    assert replica.staged == {ONE: 7}


def test_a_new_generation_drops_what_was_staged_for_the_old() -> None:
    replica = primary_in_round_2()
    replica.push(push(TWO, 7, 2, 3))
    assert replica.staged == {TWO: 7}
    assert replica.push(push(ONE, 5, 2, 2)) is PushOutcome.STALE_GENERATION
    assert replica.push(push(ONE, 5, 2, 3)) is PushOutcome.PREPARE


def test_the_round_is_made_of_all_that_is_staged_in_the_order_of_the_workers() -> None:
    replica = new_primary()
    for worker in (THREE, ONE, TWO):
        replica.push(push(worker, worker + 10, pushers=3))
    assert replica.staged_round() == op(1, (ONE, 11), (TWO, 12), (THREE, 13))


@pytest.mark.parametrize("refused", [push(TWO, 7, 3, 9), push(TWO, 6, 2, 9), push(TWO, 7, 2, 1)])
def test_a_push_that_is_not_staged_changes_nothing(refused: Push) -> None:
    replica = primary_in_round_2()
    replica.push(refused)
    assert (replica.staged, replica.generation, replica.round) == ({ONE: 5}, 2, 1)


# -- pushes at once -----------------------------------------------------------------------------


def test_without_rounds_a_push_is_applied_at_once_and_once() -> None:
    replica = new_primary(in_rounds=False)
    assert replica.push(push(ONE, 1, number=9)) is PushOutcome.APPLY
    assert replica.update(op(9, (ONE, 1))) == 2
    assert replica.push(push(ONE, 1, number=9)) is PushOutcome.REPEATED
    assert replica.push(push(ONE, 2, number=10)) is PushOutcome.APPLY
    assert replica.applied[ONE].tally == Tally().plus(1)


@pytest.mark.parametrize(
    ("floor", "has"),
    [({}, True), ({ONE: 2}, True), ({ONE: 3}, False), ({ONE: 1, TWO: 0}, False)],
)
def test_a_floor_is_reached_when_every_workers_push_is_applied(
    floor: dict[WorkerId, int], has: bool
) -> None:
    replica = new_primary(in_rounds=False)
    replica.update(op(1, (ONE, 2)))
    assert replica.has({worker: Seq(seq) for worker, seq in floor.items()}) is has


# -- proofs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proof", "asks"),
    [
        (None, Settled.DONE),
        (commit(1, ONE, TWO, generation=2), Settled.DONE),
        (commit(2, ONE, TWO, generation=2), Settled.APPLY),
        (commit(2, TWO, ONE, generation=2), Settled.APPLY),
        (commit(2, ONE, generation=2), Settled.MISSING),
        (commit(2, ONE, TWO, generation=3), Settled.MISSING),
        (commit(2, generation=3), Settled.PREPARE_EMPTY),
        (commit(3, generation=2), Settled.APPLY),
        (commit(3, ONE, generation=2), Settled.MISSING),
        (commit(4, generation=2), Settled.MISSING),
    ],
)
def test_a_proof_asks_for_what_is_not_applied_yet(proof: Commit | None, asks: Settled) -> None:
    replica = primary_that_prepared()
    assert replica.settle(proof) is asks
    assert (replica.round, replica.prepared is not None) == (1, True)


def test_a_round_without_contributors_proves_the_one_before_it() -> None:
    """A backup that has become primary may hold that one as prepared, and nobody has its proof."""
    replica = primary_that_prepared()
    proof = commit(3, generation=4)
    assert replica.settle(proof) is Settled.APPLY
    assert replica.apply_prepared(1.0).round == 2
    assert replica.settle(proof) is Settled.PREPARE_EMPTY
    replica.prepare(replica.empty_round(proof))
    assert replica.settle(proof) is Settled.APPLY
    replica.apply_prepared(1.0)
    assert replica.settle(proof) is Settled.DONE
    assert replica.round == 3


def test_a_block_without_a_value_can_prove_nothing() -> None:
    assert new_primary(initialized=False).settle(commit(1)) is Settled.MISSING


def test_an_applied_round_counts_its_pushes_and_is_what_the_next_op_proves() -> None:
    replica = primary_that_prepared()
    replica.apply_prepared(1.0)
    assert {worker: row.seq for worker, row in replica.applied.items()} == {ONE: 5, TWO: 7}
    assert replica.applied[ONE].tally == Tally().plus(4).plus(5)
    assert replica.last == commit(2, ONE, TWO, generation=2)


def test_an_initial_value_may_be_replaced_only_before_the_first_push() -> None:
    replica = new_primary()
    assert replica.initialize(Round(7), digest=0) == 2
    assert replica.round == 7
    replica.push(push(ONE, 1, 8))
    assert not replica.untrained
    with pytest.raises(AssertionError):
        replica.initialize(Round(0), digest=0)


# -- replicas -----------------------------------------------------------------------------------


@settings(REPRODUCIBLE)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 9)), unique_by=lambda row: row[0], max_size=3
    ),
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 9)), unique_by=lambda row: row[0], max_size=3
    ),
)
def test_ops_have_one_digest_exactly_when_they_are_the_same(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    digests = [
        op(1, *((WorkerId(worker), seq) for worker, seq in rows)).digest for rows in (one, other)
    ]
    assert (digests[0] == digests[1]) == (one == other)


def test_a_digest_keeps_a_workers_number_apart_from_its_pushes() -> None:
    ops = [op(1, (ONE, 2)), op(1, (TWO, 1)), op(1, (ONE, 1), (TWO, 2))]
    assert len({each.digest for each in ops}) == len(ops)


def test_a_backup_that_follows_is_what_the_primary_is() -> None:
    primary = primary_that_prepared()
    backup = Replica(me=ServerId("b/1"), initialized=True)
    backup.replication.follow(0)
    backup.prepare(op(1, (ONE, 4), (TWO, 6), generation=2), following=True)
    assert backup.settle(primary.last) is Settled.APPLY
    backup.apply_prepared(1.0)
    version = backup.prepare(op(2, (ONE, 5), (TWO, 7), generation=2), following=True)
    assert version == primary.replication.version
    assert backup.replication.history == primary.replication.history
    assert (backup.applied, backup.prepared) == (primary.applied, primary.prepared)
    assert (backup.round, backup.generation) == (primary.round, primary.generation)
