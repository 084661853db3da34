"""Rounds in which worker w gives the constant 2**w: who was counted is read back as bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elasticps.testing.members import Blueprint, Gradients, Member, together
from elasticps.testing.rig import Rig
from elasticps.worker.parameters import BlockMemory
from tests.support.checkers import bits_of_round
from tests.support.wire import eventually

COUNTED = Blueprint(options={"lr": 1.0}, dtype=torch.float64)
"""Its rounds are read back by ``bits_of_round``."""


def assert_equal(one: Member, other: Member) -> None:
    pairs = zip(one.values(), other.values(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)


async def step_all(
    members: Sequence[Member], gradients: Sequence[Gradients], weights: Sequence[float] = ()
) -> None:
    given = zip(members, gradients, weights or [1.0] * len(members), strict=True)
    await together(*(member.step(item, weight=weight) for member, item, weight in given))


async def bits_of_step(members: Sequence[Member], numbers: Sequence[int]) -> set[int]:
    """A round in which each member's gradient is 2 to its number: who was counted."""
    before = members[0].values()
    await step_all(members, [COUNTED.full(2.0**number) for number in numbers])
    return bits_of_round(before, members[0].values(), len(members))


def staged(rig: Rig, member: Member) -> int:
    """How many blocks hold a push of the member back."""
    blocks = [rig.primary(block).parameter_block(block) for block in member.blocks]
    return sum(member.id in block._staging.held for block in blocks)


async def hold(rig: Rig, member: Member, memories: Sequence[BlockMemory]) -> list[Any]:
    """Push to some blocks; returns when they hold the pushes back until the others have pushed."""
    tasks = [member.start(member.stage(memory)) for memory in memories]
    await eventually(lambda: staged(rig, member) >= len(memories))
    return tasks


async def done(task: Any) -> Any:
    return await task
