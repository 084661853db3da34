"""Many small blocks: frames are few, and values are a local run's."""

from __future__ import annotations

import asyncio

import pytest
import torch

from elasticps.core.ids import BlockId
from elasticps.testing.members import Blueprint, LocalRun, together
from elasticps.testing.rig import Rig

MANY = Blueprint(shapes=((5,), (3, 2), ()) * 20, options={"lr": 0.5})


@pytest.mark.parametrize("local", [True, False], ids=["shared memory", "payloads"])
async def test_a_round_of_many_small_blocks_takes_few_frames(local: bool) -> None:
    async with Rig(2, start_workers=2, local=local) as rig:
        one, two = await rig.workers(2, MANY)
        alone = LocalRun(MANY)
        for step in range(3):
            before = _frames(one)
            mine, others = MANY.random(10 + step), MANY.random(20 + step)
            mine_or_none = [None if index == 7 else each for index, each in enumerate(mine)]
            await together(one.step(mine_or_none), two.step(others))
            alone.step([(mine_or_none, 1.0), (others, 1.0)])
            if step:
                assert _frames(one) - before <= 12, "blocks went one by one"
        for got, want in zip(one.values(), alone.parameters, strict=True):
            torch.testing.assert_close(got, want.detach())
        for mine, others in zip(one.values(), two.values(), strict=True):
            assert torch.equal(mine, others)


async def test_a_block_that_moves_while_its_group_waits_costs_no_push() -> None:
    async with Rig(2, start_workers=2) as rig:
        one, two = await rig.workers(2, MANY)
        alone = LocalRun(MANY)
        mine, others = MANY.random(1), MANY.random(2)
        waiting = one.start(one.step(mine))
        await asyncio.wait({waiting}, timeout=0.05)
        assert not waiting.done()
        block = BlockId(3)
        there = rig.entries[block].primary
        await rig.move(block, next(name for name in rig.servers if name != there))
        await two.step(others)
        await waiting
        alone.step([(mine, 1.0), (others, 1.0)])
        for member in (one, two):
            for got, want in zip(member.values(), alone.parameters, strict=True):
                torch.testing.assert_close(got, want.detach())


def _frames(member: object) -> int:
    """Requests that a worker has sent."""
    connections = member.client._pool._connections.values()  # type: ignore[attr-defined]
    return sum(each._in_flight._last for each in connections)
