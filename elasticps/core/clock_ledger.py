"""The ledger of a job whose workers do not move in step: each has a clock of its own.

Bounded: stale synchronous parallel (Ho et al. 2013, "More Effective Distributed ML via a Stale
Synchronous Parallel Parameter Server", section 3): who is more than the job's staleness ahead of
the slowest member waits. Asynchronous: nobody waits (Dean et al. 2012, Downpour SGD).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import field

from elasticps.core.commands import Answers, Committed, Cut, Floor, Ready, Refused, Vote
from elasticps.core.ids import Round, Seq, WorkerId
from elasticps.core.lending import Ranges
from elasticps.core.ranges import count_of, first_of, less
from elasticps.core.reading import NOT_ALL_READ, NOT_LENT
from elasticps.core.replica import Commit
from elasticps.core.roster import Roster

MAX_RESERVED = 1024
"""Steps of all members together whose samples are set aside: what comes back must be kept too."""


class ClockLedger(Roster, kw_only=True):
    """``staleness`` None: asynchronous. ``round`` is the slowest member's clock.

    A vote says that a worker has finished a step. Samples lent for it then count as read, at least
    once: those of a worker that dies before its vote are lent again, pushed or not.

    ``reserved``: each member's samples of its steps to come, so that it can load them beforehand.
    They are out of the supply, but not lent: whoever would have nothing else gets them.
    """

    staleness: int | None = None
    clocks: dict[WorkerId, Round] = field(default_factory=dict)
    seqs: dict[WorkerId, Seq] = field(default_factory=dict)
    waiting: list[WorkerId] = field(default_factory=list)
    reserved: dict[WorkerId, list[Ranges]] = field(default_factory=dict)

    def cut(self) -> Cut:
        """Where the job stands: what no vote has said to be read and pushed counts as not read."""
        reserved = [parts for steps in self.reserved.values() for parts in steps]
        open_ = [*self.leases.values(), *self.kept.values(), *reserved]
        supply = self.supply.returned(tuple(part for parts in open_ for part in parts))
        return Cut(self.round, self.data, supply)

    def _ready(self, ready: Ready) -> Answers:
        reason = "only synchronous rounds are called together"
        return [(ready.worker, Refused(reason))]

    def _vote(self, vote: Vote) -> Answers:
        worker = vote.worker
        farewell = self.farewells.get(worker)
        if farewell is not None and vote.round == farewell.round:
            return [(worker, Committed(farewell, None))]
        if worker not in self.members:
            return [(worker, Refused("this worker is not a member of the job any more"))]
        clock = self.clocks[worker]
        if vote.round == clock:
            return [] if worker in self.waiting else [(worker, self._committed(worker))]
        if vote.round != clock + 1:
            return [(worker, Refused(f"round {vote.round} is not the next after {clock}"))]
        if self._is_no_reader(worker):
            return [(worker, Refused(NOT_ALL_READ))]
        if not self._keeps_what_it_has(vote):
            return [(worker, Refused(NOT_LENT))]
        self.clocks[worker] = vote.round
        self._note_speed(vote)
        if vote.contributes:
            self.seqs[worker] = vote.seq
        lent = self._taken_back(worker)
        if not vote.contributes:
            self.supply = self.supply.returned(lent)
        elif vote.keeps:
            self.kept[worker] = vote.keeps
        return self._farewell(worker) if vote.leaving else self._await(worker)

    def _await(self, worker: WorkerId) -> Answers:
        self.waiting.append(worker)
        return self._go_on()

    def _farewell(self, worker: WorkerId) -> Answers:
        self.last = self.farewells[worker] = self._commit_of(worker)
        committed = Committed(self.last, None, floor=self._floor)
        return [(worker, committed), *self._remove([worker])]

    def _go_on(self) -> Answers:
        """Answer those who waited for a slower worker, or for samples, and need not any more."""
        if self.clocks:
            self.round = max(self.round, min(self.clocks.values()))
        self._lend()
        ready = [worker for worker in self.waiting if self._may_go_on(worker)]
        self.waiting = [worker for worker in self.waiting if worker not in ready]
        answers: Answers = [(worker, self._committed(worker)) for worker in ready]
        if ready:
            self.last = self._commit_of(ready[-1])
        return answers

    def _in_bound(self, worker: WorkerId) -> bool:
        ahead = self.clocks[worker] - min(self.clocks.values())
        return self.staleness is None or ahead <= self.staleness

    def _may_go_on(self, worker: WorkerId) -> bool:
        has_work = self.data is None or bool(self._lent(worker)) or self._exhausted
        return (has_work or self._is_waited_for) and self._in_bound(worker)

    @property
    def _is_waited_for(self) -> bool:
        """Do samples that were kept wait for who is slower, and may have none to go on with?"""
        return any(self.kept.get(worker) and not self._in_bound(worker) for worker in self.waiting)

    def _commit_of(self, worker: WorkerId) -> Commit:
        return Commit(self.clocks[worker], self.generation, (worker,))

    def _committed(self, worker: WorkerId) -> Committed:
        return Committed(self._commit_of(worker), self.turn(worker), floor=self._floor)

    @property
    def awaited(self) -> list[WorkerId]:
        if all(self._in_bound(worker) for worker in self.waiting):
            return []
        slowest = min(self.clocks.values())
        return [worker for worker in self.members if self.clocks[worker] == slowest]

    # -- what the roster asks -------------------------------------------------------------------

    def _may_seat(self) -> bool:
        return True

    def _seated(self, joiners: list[WorkerId]) -> None:
        """A new worker's clock is the slowest member's."""
        slowest = min(self.clocks.values(), default=self.round)
        for worker in joiners:
            self.clocks[worker] = max(slowest, self.round)

    def _went(self, gone: list[WorkerId]) -> Answers:
        for worker in gone:
            del self.clocks[worker]
            self.seqs.pop(worker, None)
            self._release(worker)
        self.waiting = [worker for worker in self.waiting if worker not in gone]
        return self._go_on() if self.members else []

    def _next_round(self, worker: WorkerId) -> Round:
        return Round(self.clocks[worker] + 1)

    @property
    def _floor(self) -> Floor:
        return dict(self.seqs)

    @property
    def _stepped(self) -> bool:
        return bool(self.seqs)

    @property
    def _past(self) -> list[WorkerId]:
        """Nobody is in step with another: each has its own numbers alone."""
        return self.members

    @property
    def _is_all_lent(self) -> bool:
        return not any(self.reserved.values()) and super()._is_all_lent

    def _lend(self) -> None:
        """Lend a share of a batch to each who is about to take a step and has none."""
        if self.data is None:
            return
        each, over = divmod(self.data.batch_size, len(self.members) or 1)
        wanted = {worker: max(1, each + (rank < over)) for rank, worker in enumerate(self.members)}
        for worker, share in wanted.items():
            due = worker not in self.waiting or self._in_bound(worker)
            if due and not self.leases.get(worker):
                self._lend_to(worker, max(0, share - count_of(self.kept.get(worker, ()))))
        self._reserve(wanted)

    def _lend_to(self, worker: WorkerId, wanted: int) -> None:
        """What is reserved for it first; what others have reserved where nothing else is left."""
        assert self.data is not None
        steps = self.reserved.get(worker)
        if steps and wanted:
            head = steps.pop(0)
            self.leases[worker] = first_of(head, wanted)
            if rest := less(head, self.leases[worker]):
                steps.insert(0, rest)
            return
        if wanted and not self.supply.unread(self.data):
            for other in list(self.reserved):
                self._release(other)
        self._borrow([worker], wanted)

    def _reserve(self, wanted: Mapping[WorkerId, int]) -> None:
        """Set aside what each member will need next, one step of everybody after the other."""
        for depth in range(min(self.ahead, MAX_RESERVED // max(1, len(wanted)))):
            for worker, share in wanted.items():
                steps = self.reserved.setdefault(worker, [])
                parts = self._drawn([worker], share).get(worker) if len(steps) == depth else None
                if parts:
                    steps.append(parts)

    def _release(self, worker: WorkerId) -> None:
        """What was reserved for a worker can be lent to others."""
        steps = self.reserved.pop(worker, [])
        self.supply = self.supply.returned(tuple(part for parts in steps for part in parts))

    def _ahead_of(self, worker: WorkerId) -> tuple[Ranges, ...]:
        return tuple(self.reserved.get(worker, ()))
