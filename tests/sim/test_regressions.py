"""What the simulator has found: with the fault put back, its seed shows it again."""

from __future__ import annotations

from functools import partial

import pytest

from elasticps.checkpoint.rehearsal import Rehearsal
from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import Inspect, Registered
from elasticps.core.replica import Replica, Settled
from elasticps.core.roster import Roster
from elasticps.sim import ledger, sweep
from elasticps.sim.block import Block
from elasticps.sim.hosting import Hosted
from elasticps.sim.making import Making
from elasticps.sim.messages import Status

play = partial(sweep.play, checkpoints=Rehearsal)


def proofs_are_lost(patch) -> None:
    """No replica hears that a round is committed before the next op says so, as it may be."""
    patch.setattr(Hosted, "prove", lambda *_: None)


def floor_of_who_abstained(patch) -> None:
    """A worker without samples raised its floor to a push that it never made: no read was served,
    and the workers waited for ever."""
    original = ClockLedger._vote

    def vote(self, vote):
        if self.clocks.get(vote.worker) == vote.round - 1:
            self.seqs[vote.worker] = vote.seq
        return original(self, vote)

    patch.setattr(ClockLedger, "_vote", vote)


def empty_round_without_proof(patch) -> None:
    """The op of a round to which nobody contributed carried no proof of the round before: a backup
    dropped that one's gradient instead of applying it."""
    original = Block._publish

    def publish(self, op, gradient):
        last = self.replica.last
        self.replica.last = last if op.pushes else None
        original(self, op, gradient)
        self.replica.last = last

    patch.setattr(Block, "_publish", publish)
    proofs_are_lost(patch)


def empty_round_at_a_new_primary(patch) -> None:
    """A backup that became primary with a prepared round was shown the commit of an empty round
    after it, found neither, and answered BEHIND for ever."""

    def settle(self, commit):
        empty = self.initialized and not commit.contributors and commit.round == self.round + 1
        return Settled.PREPARE_EMPTY if empty else Settled.MISSING

    patch.setattr(Replica, "_settle_unprepared", settle)
    proofs_are_lost(patch)


def question_replaced_by_its_own_late_copy(patch) -> None:
    """The late copy of a vote took the place of the one that was asked again after a break: the
    answer went to a connection that was gone, and the worker waited until its request timed out."""
    patch.setattr(ledger, "_replace", dict.__setitem__)


def push_replaced_by_its_own_late_copy(patch) -> None:
    """The push that was sent again was told STALE_GENERATION when its late copy came: its worker
    then waited for a new generation, which nobody was to make."""

    def hold(self, worker, request):
        earlier = self._held.pop(worker, None)
        if earlier is not None:
            earlier.answer(Status.STALE_GENERATION)
        self._held[worker] = request

    patch.setattr(Block, "_hold", hold)


def read_of_what_is_not_durable(patch) -> None:
    """A read waited until the version that it found was durable, and was answered with a newer one:
    its reader saw a push that was lost with the primary."""
    patch.setattr(Block, "as_of_request", False)


def registered_without_proof(patch) -> None:
    """A worker that said late what it reads was given a later round's turn, not the proof of the
    rounds that had gone on without it: the blocks took its push for one out of turn."""
    original = Roster._register

    def register(self, command):
        return [
            (worker, Registered(answer.turn) if isinstance(answer, Registered) else answer)
            for worker, answer in original(self, command)
        ]

    patch.setattr(Roster, "_register", register)


def samples_counted_after_the_copy(patch) -> None:
    """Where workers are at rounds of their own, the data's position was asked for when blocks had
    been copied already: a checkpoint said of samples that they were read whose pushes it lacked."""
    tell, written = Making.tell, Making._written
    cuts = {}

    def late(self, cut, go_on):
        cuts[self] = cut

        def known(answer):
            cuts[self] = answer.cut
            go_on()

        tell(self, cut, lambda: self._worker.say(Inspect(self._worker.id), known))

    patch.setattr(Making, "_written", lambda self, saved, _: written(self, saved, cuts[self]))
    patch.setattr(Making, "tell", late)


FOUND = [
    (floor_of_who_abstained, 96, "writable"),
    (empty_round_without_proof, 631, "replica-equality"),
    (empty_round_at_a_new_primary, 631, "writable"),
    (question_replaced_by_its_own_late_copy, 464, "writable"),
    (push_replaced_by_its_own_late_copy, 293, "writable"),
    (read_of_what_is_not_durable, 6, "durable-reads"),
    (registered_without_proof, 1122, "writable"),
    (samples_counted_after_the_copy, 563, "samples"),
]


@pytest.mark.parametrize(("put_back", "seed", "checker"), FOUND)
def test_a_fault_that_was_found_is_found_again_where_it_is_put_back(
    put_back, seed, checker, monkeypatch
) -> None:
    put_back(monkeypatch)
    assert play(seed).checker == checker


@pytest.mark.parametrize("seed", [seed for _, seed, _ in FOUND])
def test_the_seeds_that_showed_a_fault_show_none_now(seed) -> None:
    assert play(seed).violation == ""
