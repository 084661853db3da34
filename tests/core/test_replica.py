"""A block's decisions on pushes and pulls: each gradient counts once, each round is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.audit import Tally
from elasticps.core.ids import BlockId, Generation, PlanEpoch, Round, Seq, ServerId, WorkerId
from elasticps.core.ledger import Command, Ledger, Observe
from elasticps.core.plan import Entry
from elasticps.core.replica import Commit, PullOutcome, Push, PushOutcome, Replica, RoundOp
from tests.support.ledger_world import Worker
from tests.support.properties import REPRODUCIBLE

ME = ServerId("a/1")
ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)


def new_primary(*, initialized: bool = True) -> Replica:
    replica = Replica(me=ME)
    replica.replication.adopt(Entry(block=BlockId(1), primary=ME, epoch=PlanEpoch(5), fresh=True))
    if initialized:
        replica.initialize(digest=0)
    return replica


def push(worker: WorkerId, seq: int, number: int = 1, generation: int = 1) -> Push:
    return Push(worker=worker, seq=Seq(seq), round=Round(number), generation=Generation(generation))


def commit(number: int, *contributors: WorkerId, generation: int = 1) -> Commit:
    return Commit(Round(number), Generation(generation), contributors)


def primary_in_round_2() -> Replica:
    """Round 1 was applied with push 4 of ONE and 6 of TWO; ONE has staged push 5 for round 2."""
    replica = new_primary()
    for staged in (push(ONE, 4, generation=2), push(TWO, 6, generation=2)):
        assert replica.push(staged) is PushOutcome.STAGE
    _, op = replica.pull(ONE, commit(1, ONE, TWO, generation=2))
    assert op is not None
    replica.apply(op)
    assert replica.push(push(ONE, 5, 2, 2)) is PushOutcome.STAGE
    return replica


# -- pushes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arriving", "outcome"),
    [
        (push(TWO, 7, 2, 2), PushOutcome.STAGE),
        (push(THREE, 1, 2, 2), PushOutcome.STAGE),
        (push(ONE, 5, 2, 2), PushOutcome.REPEATED),
        (push(ONE, 6, 2, 2), PushOutcome.STAGE),
        (push(ONE, 4, 1, 2), PushOutcome.REPEATED),
        (push(ONE, 4, 2, 2), PushOutcome.REPEATED),
        (push(TWO, 2, 1, 1), PushOutcome.REPEATED),
        (push(TWO, 7, 2, 1), PushOutcome.STALE_GENERATION),
        (push(ONE, 5, 2, 3), PushOutcome.STAGE),
        (push(TWO, 7, 1, 2), PushOutcome.OUT_OF_TURN),
        (push(TWO, 7, 3, 2), PushOutcome.OUT_OF_TURN),
    ],
)
def test_a_push_is_staged_repeated_or_refused(arriving: Push, outcome: PushOutcome) -> None:
    assert primary_in_round_2().push(arriving) is outcome


def test_a_block_without_a_value_takes_no_push() -> None:
    assert new_primary(initialized=False).push(push(ONE, 1)) is PushOutcome.OUT_OF_TURN


def test_a_late_copy_of_an_older_push_does_not_replace_the_newer() -> None:
    replica = primary_in_round_2()
    replica.push(push(ONE, 7, 2, 2))
    assert replica.push(push(ONE, 5, 2, 2)) is PushOutcome.REPEATED
    assert replica.staged == {ONE: 7}


def test_a_new_generation_drops_what_was_staged_for_the_old() -> None:
    replica = primary_in_round_2()
    replica.push(push(TWO, 7, 2, 3))
    assert replica.staged == {TWO: 7}
    assert replica.push(push(ONE, 5, 2, 2)) is PushOutcome.STALE_GENERATION
    assert replica.push(push(ONE, 5, 2, 3)) is PushOutcome.STAGE


@pytest.mark.parametrize("refused", [push(TWO, 7, 3, 9), push(TWO, 6, 2, 9), push(TWO, 7, 2, 1)])
def test_a_push_that_is_not_staged_changes_nothing(refused: Push) -> None:
    replica = primary_in_round_2()
    replica.push(refused)
    assert (replica.staged, replica.generation, replica.round) == ({ONE: 5}, 2, 1)


# -- pulls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "proof", "outcome"),
    [
        (ONE, None, PullOutcome.VALUE),
        (ONE, commit(1, ONE, TWO, generation=2), PullOutcome.VALUE),
        (ONE, commit(2, ONE, generation=2), PullOutcome.APPLY),
        (THREE, commit(2, ONE, generation=2), PullOutcome.APPLY),
        (TWO, commit(2, generation=2), PullOutcome.APPLY),
        (ONE, commit(2, ONE, TWO, generation=2), PullOutcome.WAIT),
        (TWO, commit(2, ONE, TWO, generation=2), PullOutcome.NOT_STAGED),
        (THREE, commit(2, ONE, TWO, generation=2), PullOutcome.WAIT),
        (ONE, commit(2, ONE, generation=3), PullOutcome.NOT_STAGED),
        (ONE, commit(2, ONE, generation=1), PullOutcome.NOT_STAGED),
        (TWO, commit(2, ONE, generation=3), PullOutcome.WAIT),
        (ONE, commit(3, ONE, generation=2), PullOutcome.GAP),
    ],
)
def test_a_pull_reads_applies_or_says_what_is_missing(
    worker: WorkerId, proof: Commit | None, outcome: PullOutcome
) -> None:
    replica = primary_in_round_2()
    decided, op = replica.pull(worker, proof)
    assert decided is outcome
    assert (op is not None) == (outcome is PullOutcome.APPLY)
    assert (replica.round, replica.staged) == (1, {ONE: 5})


def test_a_block_without_a_value_has_nothing_to_read() -> None:
    assert new_primary(initialized=False).pull(ONE, None) == (PullOutcome.EMPTY, None)


def test_a_round_takes_its_contributors_in_the_commits_order_and_drops_the_others() -> None:
    replica = new_primary()
    for worker in (ONE, TWO, THREE):
        replica.push(push(worker, worker + 10))
    _, op = replica.pull(ONE, commit(1, THREE, ONE))
    assert op == RoundOp(
        round=Round(1), generation=Generation(1), pushes=((THREE, Seq(13)), (ONE, Seq(11)))
    )
    replica.apply(op)
    assert (replica.round, replica.staged) == (1, {})
    assert {worker: row.seq for worker, row in replica.applied.items()} == {ONE: 11, THREE: 13}
    assert replica.push(push(TWO, 12, 2)) is PushOutcome.STAGE


def test_a_new_primary_asks_for_gradients_again_and_applies_the_round_once() -> None:
    replica = new_primary()
    for worker in (ONE, TWO):
        replica.push(push(worker, 1))
    replica.drop_staged()
    proof = commit(1, ONE, TWO)
    for worker in (ONE, TWO):
        assert replica.pull(worker, proof) == (PullOutcome.NOT_STAGED, None)
        assert replica.push(push(worker, 1)) is PushOutcome.STAGE
    _, op = replica.pull(ONE, proof)
    assert op is not None
    replica.apply(op)
    assert replica.pull(TWO, proof) == (PullOutcome.VALUE, None)
    assert replica.push(push(TWO, 1)) is PushOutcome.REPEATED
    assert {row.tally for row in replica.applied.values()} == {Tally().plus(1)}


def test_an_initial_value_may_be_replaced_only_before_the_first_round() -> None:
    replica = new_primary()
    replica.push(push(ONE, 1))
    assert replica.initialize(digest=0) == 2
    assert replica.staged == {}
    replica.push(push(ONE, 1))
    _, op = replica.pull(ONE, commit(1, ONE))
    assert op is not None
    replica.apply(op)
    with pytest.raises(AssertionError):
        replica.initialize(digest=0)


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
    digests = []
    for rows in (one, other):
        pushes = tuple((WorkerId(worker), Seq(seq)) for worker, seq in rows)
        digests.append(RoundOp(round=Round(1), generation=Generation(1), pushes=pushes).digest)
    assert (digests[0] == digests[1]) == (one == other)


def test_a_digest_keeps_a_workers_number_apart_from_its_pushes() -> None:
    ops = [
        RoundOp(round=Round(1), generation=Generation(1), pushes=pushes)
        for pushes in [((ONE, Seq(2)),), ((TWO, Seq(1)),), ((ONE, Seq(1)), (TWO, Seq(2)))]
    ]
    assert len({op.digest for op in ops}) == len(ops)


def test_a_backup_that_follows_is_what_the_primary_is() -> None:
    primary = primary_in_round_2()
    backup = Replica(me=ServerId("b/1"), initialized=True)
    backup.replication.follow(0)
    pushes = ((ONE, Seq(4)), (TWO, Seq(6)))
    op = RoundOp(round=Round(1), generation=Generation(2), pushes=pushes)
    assert backup.apply(op, following=True) == primary.replication.version
    assert backup.replication.history == primary.replication.history
    assert backup.applied == primary.applied
    assert (backup.round, backup.generation) == (primary.round, primary.generation)


# -- whole rounds -------------------------------------------------------------------------------


@dataclass(slots=True)
class Trainer:
    """A worker with its pushes: ``missing`` are the blocks that have not acknowledged the push."""

    worker: Worker
    seq: Seq = Seq(0)
    missing: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    commit: Commit | None = None
    tally: Tally = field(default_factory=Tally)


class Job:
    """A ledger, a few blocks, and workers that come and die; drawn from a seed.

    A worker does not die while a round that counts it still lacks its gradient in some block: the
    gradient exists nowhere else.
    """

    BLOCKS = 3

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.ledger = Ledger(start_workers=self.random.randint(1, 3))
        self.blocks = [new_primary() for _ in range(self.BLOCKS)]
        self.contributors: dict[Round, tuple[WorkerId, ...]] = {}
        self.trainers: dict[WorkerId, Trainer] = {}
        self.revision = 0
        for _ in range(self.ledger.start_workers):
            self.join()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            (act,) = self.random.choices(
                [self.go_on, self.join, self.die, self.move_block], weights=[60, 1, 1, 3]
            )
            act()
        self._finish()

    def join(self) -> None:
        if len(self.trainers) < 4:
            self.revision += 1
            worker = Worker(WorkerId(self.revision), None)
            self.trainers[worker.id] = Trainer(worker)
            self._ask(self.trainers[worker.id])

    def die(self) -> None:
        name = self.random.choice(list(self.trainers))
        last = self.ledger.last
        needed = last is not None and name in last.contributors
        if len(self.trainers) == 1 or (needed and self._lacking(name)):
            return
        del self.trainers[name]
        self.revision += 1
        self._apply(Observe(tuple(self.trainers), self.revision))

    def move_block(self) -> None:
        """A new primary holds what was applied, and nothing of what was staged."""
        block = self.random.choice(self.blocks)
        last = self.ledger.last
        pending = last is not None and block.round < last.round
        if not pending or set(last.contributors) <= set(self.trainers):  # type: ignore[union-attr]
            block.drop_staged()

    def _lacking(self, name: WorkerId) -> bool:
        return any(
            block.round < self.ledger.round and name not in block.staged for block in self.blocks
        )

    def go_on(self) -> None:
        trainer = self.random.choice(list(self.trainers.values()))
        worker = trainer.worker
        if trainer.unread:
            self._pull(trainer, self.random.choice(trainer.unread))
        elif worker.idle and trainer.missing:
            self._push(trainer, self.random.choice(trainer.missing))
        elif worker.idle:
            self._ask(trainer)

    def _push(self, trainer: Trainer, block: int) -> None:
        turn = trainer.worker.turn
        assert turn is not None
        number, generation = turn.round, turn.generation
        if trainer.unread and trainer.commit:
            number, generation = trainer.commit.round, trainer.commit.generation
        sent = push(trainer.worker.id, trainer.seq, number, generation)
        for _ in range(self.random.randint(1, 2)):
            assert self.blocks[block].push(sent) is not PushOutcome.OUT_OF_TURN
        if block in trainer.missing:
            trainer.missing.remove(block)

    def _pull(self, trainer: Trainer, index: int) -> None:
        block, known = self.blocks[index], trainer.commit
        outcome, op = block.pull(trainer.worker.id, known)
        if op is not None:
            assert tuple(worker for worker, _ in op.pushes) == self.contributors[op.round]
            block.apply(op)
        if outcome is PullOutcome.NOT_STAGED:
            self._push(trainer, index)
        elif outcome is not PullOutcome.WAIT:
            assert outcome in (PullOutcome.VALUE, PullOutcome.APPLY)
            assert block.round >= (known.round if known else 0)
            trainer.unread.remove(index)
            if not trainer.unread:
                self._begin_step(trainer)

    def _begin_step(self, trainer: Trainer) -> None:
        if trainer.commit and trainer.worker.id in trainer.commit.contributors:
            trainer.tally = trainer.tally.plus(trainer.seq)
        trainer.seq = Seq(trainer.seq + 1)
        trainer.missing = list(range(self.BLOCKS))

    def _ask(self, trainer: Trainer) -> None:
        trainer.worker.asked = trainer.worker.next_question()
        self._apply(trainer.worker.asked)

    def _apply(self, command: Command) -> None:
        for name, answer in self.ledger.apply(command):
            if name not in self.trainers:
                continue
            trainer = self.trainers[name]
            before = trainer.worker.turn
            trainer.worker.hear(answer)
            turn, last = trainer.worker.turn, self.ledger.last
            assert turn is not None
            if before is not None and before.round == turn.round:
                trainer.missing = list(range(self.BLOCKS)) if trainer.seq else []
            if before is None or before.round < turn.round:
                trainer.commit, trainer.unread = last, list(range(self.BLOCKS))
            if last is not None:
                assert self.contributors.setdefault(last.round, last.contributors) == (
                    last.contributors
                )

    def _finish(self) -> None:
        """Everybody goes on, without faults, to the end of a whole round."""
        goal = self.ledger.round + 2
        for _ in range(20_000):
            trainers: Sequence[Trainer] = list(self.trainers.values())
            if self.ledger.round >= goal and not any(one.unread for one in trainers):
                break
            self.go_on()
        else:
            raise AssertionError("the rounds do not go on")
        for block in self.blocks:
            assert block.round == self.ledger.round
            assert block.replication.history == self.blocks[0].replication.history
            for name, trainer in self.trainers.items():
                row = block.applied.get(name)
                assert (row.tally if row else Tally()) == trainer.tally


@pytest.mark.parametrize("block", range(4))
def test_every_block_applies_the_same_workers_gradients_in_every_round(block: int) -> None:
    for seed in range(50 * block, 50 * (block + 1)):
        try:
            Job(seed).run(steps=250)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
