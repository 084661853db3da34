"""One block's life, in memory: servers, their replica streams, workers' rounds, and the plan.

Everything that can happen is one method, so that a test may let it happen in any order. The plan
comes from ``next_plan``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from elasticps.core.audit import Tally
from elasticps.core.ids import (
    BlockId,
    Generation,
    NodeId,
    PlanEpoch,
    Round,
    Seq,
    ServerId,
    WorkerId,
)
from elasticps.core.placement import Site
from elasticps.core.plan import Entry
from elasticps.core.planner import first_plan, next_plan
from elasticps.core.records import CaughtUpRow
from elasticps.core.replica import Commit, PullOutcome, Push, PushOutcome
from elasticps.core.replication import Check, Role
from tests.support.replica_server import Op, Pull, Server, State, Stream

BLOCK = BlockId(0)


@dataclass(slots=True)
class Trainer:
    """A worker's side of the rounds. ``plans_seen`` is how much of the plan it knows."""

    id: WorkerId
    plans_seen: int = 1
    seq: Seq = Seq(1)
    staged: bool = False
    voted: Round = Round(0)
    tally: Tally = field(default_factory=Tally)
    read: tuple[Op, ...] = ()


class BlockWorld:
    """Servers, trainers and plan of one block; ``durable`` is what some worker was told."""

    def __init__(self, servers: int, trainers: int, replicas: int) -> None:
        self.replicas = replicas
        self.servers: dict[ServerId, Server] = {}
        self.drained: set[ServerId] = set()
        self.lapsed: set[ServerId] = set()
        self.reports: dict[ServerId, list[CaughtUpRow]] = {}
        self.trainers = [Trainer(WorkerId(index)) for index in range(1, trainers + 1)]
        self.generation = Generation(1)
        self.commit: Commit | None = None
        self.durable: tuple[Op, ...] = ()
        self.logs: dict[tuple[int, int], tuple[Op, ...]] = {}
        self.late_ops: list[tuple[ServerId, PlanEpoch, State | tuple[int, Op]]] = []
        self.late_pushes: list[tuple[ServerId, PlanEpoch, Push]] = []
        self.revision = 10
        for _ in range(servers):
            self.add_server()
        self.plans: list[Entry] = []
        self._write(first_plan([1], self.sites, replicas)[0])

    # -- servers and the plan -------------------------------------------------------------------

    @property
    def alive(self) -> list[ServerId]:
        """Whom the leader believes to live."""
        return [
            name
            for name, server in self.servers.items()
            if server.living and name not in self.lapsed
        ]

    @property
    def sites(self) -> list[Site]:
        names = [name for name in self.alive if name not in self.drained]
        return [Site(server=name, node=NodeId(name.split("/")[0])) for name in names]

    @property
    def entry(self) -> Entry:
        return self.plans[-1]

    def add_server(self) -> None:
        number = len(self.servers) + 1
        name = ServerId(f"n{number}/{number}")
        self.servers[name] = Server(name)

    def spared(self, name: ServerId) -> bool:
        """Would the block live on in the plan without this server?"""
        return any(holder in self.alive for holder in self.entry.holders if holder != name)

    def report(self, name: ServerId) -> None:
        """What a primary promises now reaches etcd."""
        replication = self.servers[name].replication
        self.reports[name] = [
            CaughtUpRow(BLOCK, peer, replication.epoch, 1) for peer in replication.promised_learners
        ]

    def plan(self) -> bool:
        """The leader's next step; says whether it wrote one."""
        rows = [row for report in self.reports.values() for row in report]
        planned = next_plan([1], [self.entry], self.sites, self.alive, rows, self.replicas)
        assert not planned.orphaned
        for entry in planned.changed:
            self._write(entry)
        return bool(planned.changed)

    def _write(self, entry: Entry) -> None:
        self.revision += 3
        self.plans.append(replace(entry, epoch=PlanEpoch(self.revision)))

    def learn(self, name: ServerId, plans: int) -> None:
        """``name`` hears of up to ``plans`` of the plans written; it may skip those in between.

        A server that leads hears of the plan that deposes it.
        """
        server = self.servers[name]
        upto = min(plans, len(self.plans))
        if server.replication.role is Role.PRIMARY:
            deposing = (
                index + 1
                for index in range(server.plans_seen, upto)
                if self.plans[index].primary != name
            )
            upto = next(deposing, upto)
        if upto > server.plans_seen:
            server.plans_seen = upto
            server.adopt(self.plans[upto - 1])
        self._check(server)

    def learn_all(self) -> None:
        """All living servers and trainers hear of the newest plan."""
        for name, server in self.servers.items():
            if server.living:
                self.learn(name, len(self.plans))
        for trainer in self.trainers:
            trainer.plans_seen = len(self.plans)

    # -- streams --------------------------------------------------------------------------------

    def send(self, name: ServerId, peer: ServerId) -> None:
        server = self.servers[name]
        stream = server.streams[peer]
        if stream.sent is not None:
            return
        if not stream.begun:
            stream.begun, stream.ops = True, []
            stream.sent = server.snapshot()
        elif stream.ops:
            stream.sent = stream.ops.pop(0)

    def deliver(self, name: ServerId, peer: ServerId) -> None:
        """The message under way reaches the peer, under the epoch that its sender knows by now."""
        server, stream = self.servers[name], self.servers[name].streams[peer]
        target = self.servers[peer]
        if stream.sent is None or stream.arrived is not None or not target.living:
            return
        check = target.receive(server.replication.epoch, stream.sent)
        if check is not Check.BEHIND:
            stream.arrived = check
        self._check(target)

    def hear(self, name: ServerId, peer: ServerId) -> None:
        """The peer's reply comes back."""
        server, stream = self.servers[name], self.servers[name].streams[peer]
        sent, arrived = stream.sent, stream.arrived
        if sent is None or arrived is None:
            return
        if arrived is not Check.OK:
            self.disrupt(name, peer)
            return
        stream.sent = stream.arrived = None
        version = sent.version if isinstance(sent, State) else sent[0]
        server.perform(server.replication.acked(peer, version))
        self._hear_answers(server)

    def move(self, name: ServerId, peer: ServerId) -> None:
        """What is under way goes one way further."""
        stream = self.servers[name].streams[peer]
        if stream.sent is None:
            self.send(name, peer)
        elif stream.arrived is None:
            self.deliver(name, peer)
        else:
            self.hear(name, peer)

    def disrupt(self, name: ServerId, peer: ServerId) -> None:
        """The stream breaks; what is under way may still arrive, unheard."""
        server, stream = self.servers[name], self.servers[name].streams[peer]
        if stream.sent is not None:
            self.late_ops.append((peer, server.replication.epoch, stream.sent))
        server.streams[peer] = Stream()
        server.replication.restarted(peer)

    def deliver_late(self, index: int) -> None:
        peer, epoch, op = self.late_ops.pop(index)
        self.servers[peer].receive(epoch, op)
        self._check(self.servers[peer])

    def pump(self, name: ServerId, peer: ServerId) -> None:
        """One whole exchange on a stream."""
        for step in (self.send, self.deliver, self.hear):
            if peer in self.servers[name].streams:
                step(name, peer)

    def pump_all(self) -> None:
        for name, server in self.servers.items():
            for peer in list(server.streams) if server.living else ():
                for _ in range(3):
                    self.pump(name, peer)

    # -- trainers -------------------------------------------------------------------------------

    @property
    def round(self) -> Round:
        return Round(self.commit.round if self.commit else 0)

    def ask(self, trainer: Trainer) -> Server | None:
        """The primary that the trainer knows, if it serves under the epoch that he knows."""
        known = self.plans[trainer.plans_seen - 1]
        server = self.servers[known.primary]
        if not server.living:
            return None
        check = server.replication.check(known.epoch)
        if known.epoch < server.replication.epoch:
            assert check is Check.FENCED
        elif known.epoch > server.replication.epoch:
            assert check is Check.BEHIND
        if check is not Check.OK:
            return None
        assert server.replication.role is Role.PRIMARY
        assert server.replication.holds_state
        assert self.plans[server.plans_seen - 1].primary == server.id
        return server

    def initialize(self, trainer: Trainer) -> None:
        """Give the block its first value; once that is known to be durable, training begins."""
        server = self.ask(trainer)
        if server is not None and not self.durable:
            server.act(None)
            self._answer_when_durable(server, trainer)

    def push(self, trainer: Trainer) -> None:
        """Push for the round to come; before the last commit was read, again for that one."""
        server = self.ask(trainer)
        if server is None or not self.durable:
            return
        number = Round(self._rounds(trainer) + 1)
        push = Push(worker=trainer.id, seq=trainer.seq, round=number, generation=self.generation)
        self.late_pushes.append((server.id, self.plans[trainer.plans_seen - 1].epoch, push))
        outcome = server.replica.push(push)
        if outcome in (PushOutcome.STAGE, PushOutcome.REPEATED):
            trainer.staged = True

    def push_late(self, index: int) -> None:
        """A copy of an old push arrives, and changes nothing that counts."""
        name, epoch, push = self.late_pushes[index]
        server = self.servers[name]
        if server.living and server.replication.check(epoch) is Check.OK:
            applied, staged = dict(server.replica.applied), dict(server.replica.staged)
            server.replica.push(push)
            assert server.replica.applied == applied
            assert all(server.replica.staged[worker] >= seq for worker, seq in staged.items())

    def vote(self, trainer: Trainer) -> None:
        """Vote for the round to come once the push for it is known to be staged."""
        if not trainer.staged or self._rounds(trainer) < self.round:
            return
        trainer.voted = Round(self.round + 1)
        if all(one.voted == self.round + 1 for one in self.trainers):
            everyone = tuple(one.id for one in self.trainers)
            self.commit = Commit(Round(self.round + 1), self.generation, everyone)

    def pull(self, trainer: Trainer) -> PullOutcome | None:
        """Read the block as of the last commit."""
        server = self.ask(trainer)
        if server is None:
            return None
        outcome, op = server.replica.pull(trainer.id, self.commit)
        assert outcome is not PullOutcome.GAP
        if op is not None:
            server.act(op)
            self._check(server)
        if outcome in (PullOutcome.VALUE, PullOutcome.APPLY):
            self._answer_when_durable(server, trainer)
        elif outcome is PullOutcome.NOT_STAGED:
            assert self._rounds(trainer) < self.round
            self.push(trainer)
        return outcome

    def _rounds(self, trainer: Trainer) -> int:
        return sum(op is not None for op in trainer.read)

    def _answer_when_durable(self, server: Server, trainer: Trainer) -> None:
        pull = Pull(trainer.id, server.log, server.replica.round)
        server.perform(server.replication.answer_when_durable(pull))
        self._hear_answers(server)

    def _hear_answers(self, server: Server) -> None:
        answers, server.answers = server.answers, []
        for pull, check in answers:
            if check is Check.OK:
                self._hear(self.trainers[pull.worker - 1], pull)

    def _hear(self, trainer: Trainer, pull: Pull) -> None:
        longer, shorter = sorted((pull.log, self.durable), key=len, reverse=True)
        assert longer[: len(shorter)] == shorter, "an answered op is missing"
        self.durable = longer
        if len(pull.log) <= len(trainer.read):
            return
        rounds = self._rounds(trainer)
        trainer.read = pull.log
        if self._rounds(trainer) == rounds + 1:
            trainer.tally = trainer.tally.plus(trainer.seq)
            trainer.seq = Seq(trainer.seq + 1)
            trainer.staged = False
        assert self._rounds(trainer) <= rounds + 1

    # -- promises -------------------------------------------------------------------------------

    def _check(self, server: Server) -> None:
        self._hear_answers(server)
        replication = server.replication
        if not replication.holds_state:
            assert replication.role is not Role.PRIMARY
            return
        known = self.logs.setdefault((replication.version, replication.history), server.log)
        assert known == server.log, "one version and history of two contents"
        assert len(server.log) == replication.version
        pushes = [push for op in server.log if op for push in op.pushes]
        assert len(set(pushes)) == len(pushes), "a push was applied twice"
        for worker, row in server.replica.applied.items():
            tally = Tally()
            for _, seq in (push for push in pushes if push[0] == worker):
                tally = tally.plus(seq)
            assert row.tally == tally

    def check_plan(self) -> None:
        """Who may lead next holds all that was answered; peers hold what their primary thinks."""
        for name in self.entry.holders:
            server = self.servers[name]
            if server.living:
                assert server.log[: len(self.durable)] == self.durable, "an answered op is missing"
        leaders = [
            server
            for server in self.servers.values()
            if server.living and server.replication.role is Role.PRIMARY
        ]
        epochs = [leader.replication.epoch for leader in leaders]
        assert len(set(epochs)) == len(epochs), "two primaries of one epoch"
        for leader in leaders:
            for peer, state in leader.replication.peers.items():
                backup = self.servers[peer]
                same = backup.replication.epoch == leader.replication.epoch
                if state.promised and state.acked >= 0 and same and backup.living:
                    assert backup.log == leader.log[: len(backup.log)]
                    assert len(backup.log) >= state.acked

    # -- the end --------------------------------------------------------------------------------

    def settle(self) -> None:
        """Faults end: plan, streams and workers go on until a whole further round is read."""
        goal = self.round + 1 if self.commit else 1
        for _ in range(100):
            wrote = self._go_on()
            done = all(self._rounds(trainer) > goal for trainer in self.trainers)
            if done and not wrote and not self.entry.learners:
                break
        else:
            raise AssertionError("the block did not become writable, or its plan did not settle")
        wanted = min(self.replicas, len(self.sites)) if self.sites else len(self.entry.holders)
        assert len(self.entry.holders) == wanted
        held = {self.servers[name].log for name in self.entry.holders}
        assert held == {self.durable}
        for trainer in self.trainers:
            row = self.servers[self.entry.primary].replica.applied[trainer.id]
            assert row.tally == trainer.tally

    def _go_on(self) -> bool:
        wrote = self.plan()
        self.learn_all()
        leader = self.servers[self.entry.primary]
        for peer in list(leader.streams):
            for _ in range(len(self.plans) + 5):
                self.pump(leader.id, peer)
        self.report(leader.id)
        for step in (self.initialize, self.push, self.vote, self.pull, self.pull):
            for trainer in self.trainers:
                step(trainer)
        for peer in list(leader.streams):
            for _ in range(5):
                self.pump(leader.id, peer)
        self.check_plan()
        return wrote
