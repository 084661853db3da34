"""What may happen to one block, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from tests.support.block_world import BlockWorld
from tests.support.replica_server import Server

Choice = TypeVar("Choice")

ACTS = {
    "learn": 6,
    "skip_plans": 6,
    "plan": 4,
    "report": 6,
    "catch_up": 6,
    "move": 18,
    "disrupt": 3,
    "deliver_late": 2,
    "push_late": 1,
    "train": 16,
    "train_together": 8,
    "add_server": 1,
    "drain_or_not": 3,
    "lose": 2,
}


class Walk:
    """What happens to one block, drawn from a seed; ``BlockWorld`` checks at every step.

    The block migrates and fails over while rounds are pushed, committed and read: plans are
    skipped, streams break, servers join, drain, die, or go on though their lease has lapsed.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.world = BlockWorld(
            servers=self._random.randint(2, 5),
            trainers=self._random.randint(1, 2),
            replicas=self._drawn([1, 2, 2, 3]),
        )
        if not self._chance(4):
            self.world.learn_all()
            self.world.initialize(self.world.trainers[0])
            self.world.pump_all()

    def run(self, steps: int) -> None:
        acts = self._random.choices(list(ACTS), weights=list(ACTS.values()), k=steps)
        for act in acts:
            getattr(self, act)()
            self.world.check_plan()
        self.world.settle()

    def _drawn(self, choices: Sequence[Choice]) -> Choice:
        return self._random.choice(choices)

    def _chance(self, of: int) -> bool:
        return self._random.randrange(of) == 0

    @property
    def living(self) -> list[Server]:
        return [server for server in self.world.servers.values() if server.living]

    def learn(self) -> None:
        server = self._drawn(self.living)
        self.world.learn(server.id, server.plans_seen + 1)

    def skip_plans(self) -> None:
        if self._chance(3):
            self.world.learn_all()
        else:
            self.world.learn(self._drawn(self.living).id, len(self.world.plans))

    def plan(self) -> None:
        self.world.plan()

    def report(self) -> None:
        self.world.report(self._drawn(self.living).id)
        self.world.report(self.world.entry.primary)
        self.world.plan()

    def catch_up(self) -> None:
        self.world.pump_all()
        self.report()

    def add_server(self) -> None:
        if len(self.world.servers) < 7:
            self.world.add_server()

    def drain_or_not(self) -> None:
        self.world.drained ^= {self._drawn(self.living).id}

    def lose(self) -> None:
        """A server dies; or its lease lapses, and it does not know."""
        name = self.world.entry.primary if self._chance(2) else self._drawn(self.living).id
        if self.world.spared(name):
            if self._chance(2):
                self.world.lapsed.add(name)
            else:
                self.world.servers[name].living = False
            self.world.plan()

    def move(self) -> None:
        links = [(server.id, peer) for server in self.living for peer in server.streams]
        if links:
            (self.world.pump if self._chance(3) else self.world.move)(*self._drawn(links))

    def disrupt(self) -> None:
        streams = {
            (server.id, peer): stream
            for server in self.living
            for peer, stream in server.streams.items()
        }
        busy = [link for link, stream in streams.items() if stream.sent is not None]
        if streams:
            self.world.disrupt(*self._drawn(busy or list(streams)))

    def deliver_late(self) -> None:
        if self.world.late_ops:
            self.world.deliver_late(self._drawn(range(len(self.world.late_ops))))

    def push_late(self) -> None:
        if self.world.late_pushes:
            self.world.push_late(self._drawn(range(len(self.world.late_pushes))))

    def train(self) -> None:
        trainer = self._drawn(self.world.trainers)
        if self._chance(2):
            trainer.plans_seen = len(self.world.plans)
        world = self.world
        choices = [world.push, world.vote, world.pull, world.pull, world.initialize]
        self._drawn(choices)(trainer)

    def train_together(self) -> None:
        """All trainers push, then vote, then pull; sometimes they stop on the way."""
        world = self.world
        for act in [world.push, world.vote, world.pull][: self._random.randint(2, 3)]:
            for trainer in world.trainers:
                act(trainer)
        if self._chance(2):
            world.pump_all()
