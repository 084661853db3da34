"""A training that something is done to, and the same one undisturbed: no bit differs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

import pytest
import torch

from elasticps.core.audit import Verdict
from elasticps.testing.members import Blueprint, Member, together
from elasticps.testing.rig import Rig
from tests.support.wire import eventually

MOMENTUM = Blueprint(options={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
ADAM = Blueprint(optimizer="adamw", options={"lr": 0.01, "amsgrad": True})
WHOLE = Blueprint(optimizer="adafactor", options={"lr": 0.01})

BLUEPRINTS = pytest.mark.parametrize(
    "blueprint", [MOMENTUM, ADAM, WHOLE], ids=["sgd", "adamw", "adafactor"]
)


@dataclass(slots=True)
class Training:
    """Two workers' rounds, to the same last one, with gradients that depend on the round alone."""

    blueprint: Blueprint
    members: list[Member]
    last_round: float = float("inf")

    @property
    def round(self) -> int:
        """The round under way."""
        turn = self.members[0].exchange.turn
        assert turn is not None
        return turn.round

    async def _train(self, rank: int) -> None:
        member = self.members[rank]
        while (turn := member.exchange.turn) is not None and turn.round <= self.last_round:
            await member.step(self.blueprint.random(10 * turn.round + rank))

    async def go_on(self, rounds: int) -> None:
        goal = self.round + rounds
        await eventually(lambda: self.round >= goal)

    async def during(self, work: Awaitable[None]) -> int:
        """Train until ``work`` is done, and two rounds longer. Returns how many it took."""
        first = self.round
        async with asyncio.TaskGroup() as tasks:
            for rank in range(len(self.members)):
                tasks.create_task(self._train(rank))
            await self.go_on(2)
            await work
            self.last_round = self.round + 2
        return self.round - first

    async def verdict(self) -> Verdict:
        total = Verdict()
        for member in self.members:
            total = total.plus(await member.exchange.audit())
        return total


async def begun(rig: Rig, blueprint: Blueprint) -> Training:
    return Training(blueprint, await rig.workers(2, blueprint))


async def undisturbed(blueprint: Blueprint, rounds: int) -> list[torch.Tensor]:
    """The values after ``rounds`` of the same training in which nothing moves."""
    async with Rig(servers=1, start_workers=2) as rig:
        training = await begun(rig, blueprint)
        training.last_round = rounds
        await together(training._train(0), training._train(1))
        return training.members[0].values()


async def assert_undisturbed(training: Training) -> None:
    """The values are, bit for bit, those of the same training in which nothing moves."""
    rounds = training.round - 1
    one, other = (member.values() for member in training.members)
    wanted = await undisturbed(training.blueprint, rounds)
    for mine, its, value in zip(one, other, wanted, strict=True):
        assert torch.equal(mine, value)
        assert torch.equal(its, value)


async def assert_none_lost(training: Training, rounds: int) -> None:
    verdict = await training.verdict()
    blocks = len(training.members[0].blocks)
    assert verdict == Verdict(acknowledged=2 * blocks * rounds)


def settled(rig: Rig) -> bool:
    return not any(entry.learners for entry in rig.entries.values())
