"""Pushes that no worker should send: gradients that are not finite, numbers that do not follow."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch

from elasticps.core.consistency import NonFinite
from elasticps.core.ids import Seq
from elasticps.errors import JobFailed
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import CLUSTER
from elasticps.wire.frame import Status
from elasticps.wire.messages import HelloMeta
from tests.bad_input.frames import (
    BLOCK,
    BLUEPRINT,
    VALUE,
    Row,
    everything,
    push,
    sent,
    server_of,
    values,
)

pytestmark = pytest.mark.bad_input


def counted(rig: Rig) -> int:
    return sum(
        job.counts.nonfinite
        for server in rig.servers.values()
        for job in server.server.table.load().tally.jobs
    )


def look_at_all(rig: Rig) -> None:
    for server in rig.servers.values():
        server.server.table._spot_check._due_s = 0.0


def one_bad(number: float) -> list[torch.Tensor]:
    gradients = BLUEPRINT.full(1.0)
    gradients[0][700] = number
    return gradients


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
async def test_a_gradient_that_is_not_finite_is_applied_as_torch_does_and_counted(
    number: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        look_at_all(rig)
        await member.step(one_bad(number))
        first = member.values()[0]
        assert not first[700].isfinite()
        assert first.isfinite().sum() == first.numel() - 1
        assert counted(rig) == 1
        look_at_all(rig)
        await member.step(BLUEPRINT.full(1.0))
        assert counted(rig) == 1
    assert "a gradient is not finite, nonfinite=apply" in caplog.text


@pytest.mark.parametrize("number", [math.nan, math.inf])
async def test_a_job_may_refuse_them_and_then_its_worker_fails_alone(number: float) -> None:
    async with Rig(start_workers=2, nonfinite=NonFinite.REFUSE) as rig:
        wild, other = await rig.workers(2, BLUEPRINT)
        before = values(rig)
        going = asyncio.create_task(other.step(BLUEPRINT.full(1.0)))
        with pytest.raises(JobFailed, match=r"block 1 is not finite .*nonfinite=refuse"):
            await wild.step(one_bad(number))
        assert values(rig) == before
        assert counted(rig) == 1
        await rig.kill(wild)
        await going
        assert all(value.isfinite().all() for value in other.values())


async def test_a_replayed_push_gets_the_first_ones_answer_and_changes_nothing() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await member.step(BLUEPRINT.full(1.0))
        before, epoch = everything(rig), rig.entries[BLOCK].epoch
        row = Row(
            hello=HelloMeta(CLUSTER, str(member.id)),
            worker=member.id,
            seq=member.exchange._seq,
            round=1,
            meta=push(),
            payload=VALUE,
            gives=Status.OK,
        )
        for _ in range(3):
            assert await sent(server_of(rig, row), row, epoch) is row.gives
        assert everything(rig) == before


async def test_a_gap_in_a_workers_numbers_is_taken_and_a_number_of_the_past_is_not() -> None:
    """Whoever gave a push up leaves a gap: it is no sign of a loss, as one in the ops is."""
    async with Rig() as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        member.exchange._seq = Seq(40)
        await member.step(BLUEPRINT.full(1.0))
        before = everything(rig)
        member.exchange._seq = Seq(3)
        member.give(BLUEPRINT.full(8.0))
        await member.exchange.push()
        assert everything(rig) == before
