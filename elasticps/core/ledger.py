"""The ledger of a synchronous job: whole rounds, the same workers in every block.

A round is committed when all who take part have voted; whoever dies first makes a new generation,
in which the others push and vote again. Backup workers (Chen et al. 2016, "Revisiting Distributed
Synchronous SGD", section 3) are the slowest ones of a round, which it does not wait for: the ledger
calls those whose gradients were ready first, before any of them pushes.
"""

from __future__ import annotations

from msgspec import field

from elasticps.core.bulletin import without
from elasticps.core.commands import (
    Answers,
    Called,
    Committed,
    Ready,
    Refused,
    Regenerated,
    Vote,
)
from elasticps.core.ids import Round, WorkerId
from elasticps.core.ranges import Range, count_of
from elasticps.core.reading import NOT_ALL_READ, NOT_LENT
from elasticps.core.replica import Commit
from elasticps.core.roster import Roster

NOT_ALL_PUSHED = "some workers of this round pushed to the shards, and others did not"


class Ledger(Roster, kw_only=True):
    """``called``: who makes the round under way; empty where it is everybody, or not known yet.

    ``apart``: who votes for a round without pushes. ``counted``: the newest round that counts each
    member's gradient; ``keeping`` and ``scales``: what the votes of the round under way keep, and
    how they would scale its mean.
    """

    backup_workers: int = 0
    leaving: list[WorkerId] = field(default_factory=list)
    votes: dict[WorkerId, bool] = field(default_factory=dict)
    apart: list[WorkerId] = field(default_factory=list)
    ready: list[WorkerId] = field(default_factory=list)
    called: list[WorkerId] = field(default_factory=list)
    counted: dict[WorkerId, Round] = field(default_factory=dict)
    keeping: dict[WorkerId, tuple[Range, ...]] = field(default_factory=dict)
    scales: dict[WorkerId, float] = field(default_factory=dict)

    # -- rounds ---------------------------------------------------------------------------------

    def _ready(self, ready: Ready) -> Answers:
        worker = ready.worker
        objection = self._out_of_turn(worker, ready.round)
        if objection:
            return objection
        if ready.generation != self.generation:
            return [(worker, Regenerated(self.turn(worker)))]
        if not self.called:
            if worker not in self.ready:
                self.ready.append(worker)
            return self._call()
        return [(worker, self._called(worker))]

    def _call(self) -> Answers:
        """Once enough gradients are ready, those make the round."""
        if len(self.ready) < max(1, len(self._able) - self.backup_workers):
            return []
        self.called = [member for member in self.members if member in self.ready]
        return [(worker, self._called(worker)) for worker in self.ready]

    def _called(self, worker: WorkerId) -> Called:
        return Called(len(self.called), worker in self.called)

    def _vote(self, vote: Vote) -> Answers:
        worker = vote.worker
        farewell = self.farewells.get(worker)
        if farewell is not None and vote.round == farewell.round:
            counted = farewell.apart or worker in farewell.contributors
            return [(worker, Committed(farewell, None, counted))]
        objection = self._out_of_turn(worker, vote.round)
        if objection:
            return objection
        if vote.generation != self.generation:
            return [(worker, Regenerated(self.turn(worker)))]
        may = worker in (self.called if self.backup_workers else self._able)
        if vote.contributes != may or self._is_no_reader(worker):
            return [(worker, Refused(NOT_ALL_READ))]
        if vote.contributes and self._is_odd(vote):
            return [(worker, Refused(NOT_ALL_PUSHED))]
        if not self._keeps_what_it_has(vote):
            return [(worker, Refused(NOT_LENT))]
        self.votes[worker] = vote.contributes
        self.keeping[worker] = vote.keeps
        self.scales[worker] = vote.scale
        self._note_speed(vote)
        if vote.contributes and not vote.pushed and worker not in self.apart:
            self.apart.append(worker)
        if vote.leaving and worker not in self.leaving:
            self.leaving.append(worker)
        return self._commit() if self._is_whole() else []

    def _is_odd(self, vote: Vote) -> bool:
        """Has it pushed where another has not, or the other way round?"""
        others = [name for name in self.votes if self.votes[name] and name != vote.worker]
        return any((name in self.apart) == vote.pushed for name in others)

    def _out_of_turn(self, worker: WorkerId, round_: Round) -> Answers:
        """The answer to a worker that does not speak of the round under way."""
        if worker not in self.members:
            return [(worker, Refused("this worker is not a member of the job any more"))]
        known = round_ == self.round or (self.backup_workers and round_ < self.round)
        if known and self.last is not None:
            return [(worker, self._committed(worker, round_))]
        if round_ != self.round + 1:
            return [(worker, Refused(f"round {round_} is not the next after {self.round}"))]
        return []

    @property
    def awaited(self) -> list[WorkerId]:
        asked, done = self.members, [*self.votes]
        if self.backup_workers and self._able:
            asked, done = (self.called, done) if self.called else (self._able, self.ready)
        late = [worker for worker in asked if worker not in done]
        return late if len(late) < len(asked) else []

    def _is_whole(self) -> bool:
        if self.backup_workers and self._able:
            return bool(self.called) and all(worker in self.votes for worker in self.called)
        return all(member in self.votes for member in self.members)

    def _commit(self) -> Answers:
        round_ = Round(self.round + 1)
        voters = [member for member in self.members if member in self.votes]
        contributors = tuple(worker for worker in voters if self.votes[worker])
        self.round = round_
        self.last = self._commit_of(contributors)
        for worker in self.members:
            lent, keeping = self._taken_back(worker), self.keeping.get(worker, ())
            if worker not in contributors:
                self.supply = self.supply.returned(lent)
            elif worker in self.leaving:
                self.supply = self.supply.returned(keeping)
            elif keeping:
                self.kept[worker] = keeping
        self.departed += self.leaving
        self.readers = [worker for worker in self.readers if worker not in self.leaving]
        self._forget_readers(self.leaving)
        self.reduction = self.reduction.without(self.leaving)
        self.notes = without(self.notes, self.leaving)
        self.farewells.update((worker, self.last) for worker in self.leaving)
        changed = bool(self.joining or self.leaving)
        self.members = [worker for worker in self.members if worker not in self.leaving]
        self.counted.update(dict.fromkeys(contributors, round_))
        self._forget_votes()
        joiners = self._seat() if changed else []
        self._lend()
        answers: Answers = [(worker, self._committed(worker, round_)) for worker in voters]
        self.counted = {
            worker: self.counted[worker] for worker in self.members if worker in self.counted
        }
        return answers + self._admissions(joiners)

    def _commit_of(self, contributors: tuple[WorkerId, ...]) -> Commit:
        """Without pushes a round is apart, and so is an empty one that follows such a round.

        Both keep the scale of the round before: a replica may have yet to apply that one.
        """
        last = self.last
        follows = last is not None and last.apart
        scale = last.scale if last is not None else 1.0
        if not self.apart and (contributors or not follows):
            scale = self.scales[contributors[0]] if contributors else scale
            return Commit(self.round, self.generation, contributors, scale=scale)
        base = last.base if last is not None and follows else last
        return Commit(self.round, self.generation, (), apart=True, base=base, scale=scale)

    def _committed(self, worker: WorkerId, round_: Round) -> Committed:
        assert self.last is not None
        turn = self.turn(worker) if worker in self.members else None
        return Committed(self.last, turn, self.counted.get(worker) == round_)

    def _forget_votes(self) -> None:
        self.leaving, self.votes, self.ready, self.called = [], {}, [], []
        self.apart, self.keeping, self.scales = [], {}, {}

    # -- what the roster asks -------------------------------------------------------------------

    def _may_seat(self) -> bool:
        return not self.members

    def _seated(self, joiners: list[WorkerId]) -> None:
        """All begin with the round that is next."""

    def _went(self, gone: list[WorkerId]) -> Answers:
        """Who had voted, or was ready, starts the round over."""
        for worker in gone:
            self.counted.pop(worker, None)
        waiting = [member for member in self.members if member in {*self.votes, *self.ready}]
        self._forget_votes()
        return [(worker, Regenerated(self.turn(worker))) for worker in waiting]

    def _next_round(self, worker: WorkerId) -> Round:
        return Round(self.round + 1)

    @property
    def _stepped(self) -> bool:
        return bool(self.votes or self.ready)

    @property
    def _past(self) -> list[WorkerId]:
        return [*self.votes, *self.ready]

    def _lend(self) -> None:
        """Lend the next global batch to the members, in rank order.

        What some have kept is a part of it.
        """
        if self.data is None or not self.members:
            self.leases = {}
            return
        self.drawn_from = self.supply.returned(
            tuple(part for member in self.members for part in self.kept.get(member, ()))
        )
        wanted = max(0, self.data.batch_size - sum(map(count_of, self.kept.values())))
        order = self._in_order
        self.leases = dict.fromkeys(order, ())
        self._borrow(order, wanted)

    @property
    def _in_order(self) -> list[WorkerId]:
        """Members as they are served.

        Whom the last round went on without comes last, or its samples would come back to it.
        """
        fast = self.last.contributors if self.backup_workers and self.last else self.members
        return sorted(self.members, key=lambda member: member not in fast)

    def _ahead_of(self, worker: WorkerId) -> tuple[tuple[Range, ...], ...]:
        """Foreseen once for all members, who ask one after the other when a round begins."""
        if not self.ahead or self.data is None:
            return ()
        now = (self.round, self.generation, self.supply, self.ahead)
        known, foreseen = self.__dict__.get("foreseen", (None, {}))
        if known != now:
            foreseen = self._foreseen(self._in_order, self.data.batch_size)
            self.__dict__["foreseen"] = (now, foreseen)
        return tuple(foreseen.get(worker, ()))
