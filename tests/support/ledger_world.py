"""Workers around a ledger, in memory: each asks what a real one would, and believes its answers.

``World`` carries commands to a ledger and to a follower of it, answers back, and holds every
promise of the ledger against what the workers saw.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from elasticps.core.commands import (
    Admitted,
    Answer,
    Command,
    Committed,
    Initialized,
    Join,
    Leave,
    Left,
    Observe,
    Refused,
    Regenerated,
    Register,
    Registered,
    Regroup,
    Through,
    Turn,
    Vote,
)
from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.lending import DYNAMIC
from elasticps.core.ranges import DataSpec
from elasticps.core.replica import Commit
from elasticps.core.roster import Roster
from tests.support.ledger_answers import positions


def encoded(ledger: Roster) -> bytes:
    return msgspec.msgpack.encode(ledger)


def copied(ledger: Ledger) -> Ledger:
    return msgspec.msgpack.decode(encoded(ledger), type=Ledger)


@dataclass(slots=True)
class Worker:
    """One life of a worker. ``asked`` is the question it waits on."""

    id: WorkerId
    data: DataSpec | None
    turn: Turn | None = None
    asked: Command | None = None
    told_to_initialize: bool = False
    registered: bool = False
    retiring: bool = False
    living: bool = True
    declared_dead: bool = False
    unheard: bool = False
    """Its answer was lost: it will ask again."""
    over: bool = False
    push_every: int = 1

    @property
    def idle(self) -> bool:
        return self.living and not self.over and self.asked is None

    def next_question(self) -> Command:
        if self.turn is None:
            return Join(self.id)
        if self.told_to_initialize:
            return Initialized(self.id)
        if self.data is not None and not self.registered:
            return Register(self.id, self.data)
        if self.turn.exhausted:
            return Leave(self.id, through=self.turn.rank == 0)
        return Vote(
            self.id,
            self.turn.round,
            self.turn.generation,
            contributes=self.data is None or bool(self.turn.samples),
            leaving=self.retiring,
            pushed=self.turn.round % self.push_every == 0,
            speed=1.0 + self.id % 3,
        )

    def hear(self, answer: Answer) -> None:
        asked, self.asked = self.asked, None
        match answer:
            case Admitted():
                assert isinstance(asked, Join | Initialized)
                assert not (isinstance(asked, Initialized) and answer.initialize)
                self.turn, self.told_to_initialize = answer.turn, answer.initialize
            case Registered():
                assert isinstance(asked, Register)
                self.turn, self.registered = answer.turn, True
            case Committed():
                assert isinstance(asked, Vote)
                assert answer.commit.round == asked.round
                assert answer.commit.apart or asked.pushed or not answer.commit.contributors
                counts = asked.contributes and not answer.commit.apart
                assert (self.id in answer.commit.contributors) == counts
                self.turn, self.over = answer.turn, answer.turn is None
                assert self.over == asked.leaving
            case Regenerated():
                assert isinstance(asked, Vote)
                assert answer.turn.round == asked.round
                assert answer.turn.generation > asked.generation
                self.turn = answer.turn
            case Through():
                assert isinstance(asked, Join)
                self.over = True
            case Left():
                assert isinstance(asked, Leave)
                self.over = True
            case Refused():
                assert self.declared_dead, answer.reason
                self.over = True


@dataclass(slots=True)
class World:
    """A ledger, a follower that applies the same commands, and the workers."""

    ledger: Ledger
    data: DataSpec | None
    follower: Ledger = field(init=False)
    revision: int = 0
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    applied: list[Command] = field(default_factory=list)
    votes: dict[tuple[Round, Generation], dict[WorkerId, bool]] = field(default_factory=dict)
    commits: dict[Round, Commit] = field(default_factory=dict)
    committed: Counter[int] = field(default_factory=Counter)
    removals: int = 0
    push_every: int = 1

    def __post_init__(self) -> None:
        self.follower = copied(self.ledger)

    def spawn(self) -> Worker:
        self.revision += 1
        worker = Worker(WorkerId(self.revision), self.data, push_every=self.push_every)
        self.workers[worker.id] = worker
        return worker

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.living and not worker.over]

    @property
    def listed(self) -> tuple[WorkerId, ...]:
        """Whom etcd has as alive."""
        return tuple(worker.id for worker in self.living if not worker.declared_dead)

    # -- questions and answers ------------------------------------------------------------------

    def ask(self, worker: Worker, *, heard: bool = True) -> None:
        """Let ``worker`` ask, for the first time or again."""
        if worker.asked is None:
            worker.asked = worker.next_question()
        worker.unheard = False
        if isinstance(worker.asked, Vote):
            self._check_ballot(worker, worker.asked)
        self.apply(worker.asked, deaf=() if heard else (worker.id,))

    def leave(self, worker: Worker) -> None:
        worker.asked = Leave(worker.id)
        self.ask(worker)

    def observe(self, alive: tuple[WorkerId, ...], revision: int) -> None:
        if revision > self.ledger.observed:
            for worker in self.workers.values():
                if worker.id <= revision and worker.id not in alive:
                    worker.declared_dead = True
        self.apply(Observe(alive, revision))

    def apply(self, command: Command, *, deaf: tuple[WorkerId, ...] = ()) -> None:
        """Give both ledgers a command, and those who wait their answers; ``deaf`` miss theirs."""
        before = copied(self.ledger)
        answers = self.ledger.apply(command)
        assert self.follower.apply(command) == answers
        self.applied.append(command)
        self._check_round(before)
        self._check_state()
        known = (self.ledger.members, self.ledger.data)
        same = known == (before.members, before.data)
        assert same == (self.ledger.generation == before.generation) or isinstance(command, Regroup)
        self.check_repeat(command)
        for name, answer in answers:
            worker = self.workers[name]
            if isinstance(answer, Committed):
                assert self.commits[answer.commit.round] == answer.commit
            if name in deaf:
                worker.unheard = True
            elif worker.living and worker.asked is not None and not worker.unheard:
                worker.hear(answer)

    def fail_over(self) -> None:
        """The follower takes over; nobody who waits there is known to it, so all ask again."""
        self.ledger, self.follower = self.follower, copied(self.follower)
        for worker in self.living:
            worker.unheard = worker.asked is not None

    # -- promises -------------------------------------------------------------------------------

    def check_repeat(self, command: Command) -> None:
        """A command that was carried out once changes nothing when it comes again."""
        now = encoded(self.ledger)
        again = copied(self.ledger)
        again.apply(command)
        assert encoded(again) == now, command

    def _check_ballot(self, worker: Worker, vote: Vote) -> None:
        ledger = self.ledger
        to_come = (Round(ledger.round + 1), ledger.generation)
        if worker.id in ledger.members and (vote.round, vote.generation) == to_come:
            assert worker.turn is not None
            assert worker.turn.samples == ledger.leases.get(worker.id, ())
            self.votes.setdefault(to_come, {})[worker.id] = vote.contributes

    def _check_round(self, before: Ledger) -> None:
        last = self.ledger.last
        if last is None or last == before.last:
            return
        assert last.round == before.round + 1 == self.ledger.round
        assert last.generation == before.generation
        votes = self.votes[last.round, last.generation]
        assert set(before.members) <= set(votes)
        contributors = tuple(name for name in before.members if votes[name])
        if last.apart:
            assert last.round % self.push_every or not contributors
            assert last.base is None or not last.base.apart
        assert last.contributors == (() if last.apart else contributors)
        self.commits[last.round] = last
        for lease in before.leases.values():
            self.committed.update(positions(lease))

    def _check_state(self) -> None:
        ledger = self.ledger
        assert encoded(ledger) == encoded(self.follower)
        assert len(set(ledger.members)) == len(ledger.members)
        assert not set(ledger.members) & set(ledger.joining)
        assert not set(ledger.departed) & {*ledger.members, *ledger.joining}
        assert set(ledger.votes) <= set(ledger.members)
        assert set(ledger.leaving) <= set(ledger.votes) | set(ledger.members)
        assert set(ledger.leases) <= set(ledger.members)
        turns = [ledger.turn(name) for name in ledger.members]
        assert [turn.rank for turn in turns] == list(range(len(turns)))
        assert {turn.world for turn in turns} <= {len(turns)}
        assert len({turn.exhausted for turn in turns}) <= 1
        self._check_samples()

    def _check_samples(self) -> None:
        """Each sample lent so far is committed, lent now, or given back: exactly one of these."""
        if self.data is None or self.ledger.data is None:
            return
        ledger = self.ledger
        assert set(ledger.leases) == set(ledger.members)
        lent = [positions(lease) for lease in ledger.leases.values()]
        if lent and not self.removals and ledger.data_policy == DYNAMIC:
            assert max(map(len, lent)) - min(map(len, lent)) <= 1
        assert sum(map(len, lent)) <= self.data.batch_size
        kept = Counter(position for lease in lent for position in lease)
        given_back = Counter(positions(ledger.supply.given_back))
        assert self.committed + kept + given_back == Counter(range(ledger.supply.position))

    # -- the end --------------------------------------------------------------------------------

    def settle(self, rounds: int) -> None:
        """Let everybody go on to the end of the data, or for ``rounds`` more rounds without data.

        Only those whose answer was lost, or who were declared dead, ask twice. New workers come
        where the old ones are too few to start with, or have left work behind.
        """
        self.revision += 1
        self.observe(self.listed, self.revision)
        last_round = self.ledger.round + rounds
        while self._unfinished(last_round):
            missing = 1 if self.ledger.started else self.ledger.start_workers
            for _ in range(missing - len(self.listed)):
                self.spawn()
            self._run(last_round)
        assert self.ledger.round < last_round + 500

    def _unfinished(self, last_round: int) -> bool:
        if self.living:
            return True
        if self.data is None:
            return self.ledger.round < last_round
        return self.ledger.data is None or not self.ledger._exhausted

    def _run(self, last_round: int) -> None:
        for _ in range(500):
            ready = [worker for worker in self.living if self._may_go_on(worker)]
            if not ready:
                break
            for worker in ready:
                if self._may_go_on(worker):
                    if self.data is None and self.ledger.round >= last_round:
                        worker.retiring = True
                    self.ask(worker)
        assert not self.living, "somebody waits for an answer that never comes"

    def _may_go_on(self, worker: Worker) -> bool:
        asks_again = worker.unheard or worker.declared_dead
        return worker.living and not worker.over and (worker.asked is None or asks_again)
