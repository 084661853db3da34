"""Jobs whose values come back coded: all workers hold the same bits, near what the servers have."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from elasticps.core.ids import BlockId
from elasticps.testing.members import Blueprint, Member, together
from elasticps.testing.rig import Rig
from elasticps.worker.client import Client
from tests.support.bits import assert_equal, step_all
from tests.support.wire import eventually

LARGE = Blueprint(
    shapes=((51_200,), (63,)), options={"lr": 0.1, "momentum": 0.9}, block_bytes=102_400
)
"""Two blocks of 25,600 elements, whose values are coded, and a small one, whose value is not."""
CODED = (BlockId(1), BlockId(2))
VALUE_BYTES = 4 * 51_263
CODED_BYTES = 51_200 + 4 * 200 + 4 * 63


def exact(rig: Rig, block: BlockId) -> torch.Tensor:
    return rig.primary(block).parameter_block(block).tensor.value.view(-1)


def assert_near(rig: Rig, member: Member, most: float) -> None:
    held = member.values()[0].split(25_600)
    for block, part in zip(CODED, held, strict=True):
        assert 0 < float((part - exact(rig, block)).abs().max()) <= most


async def rounds(members: Sequence[Member], *seeds: int) -> list[int]:
    """Rounds of random gradients; the bytes that each member pulled in the last one."""
    before: list[int] = []
    for seed in seeds:
        before = [member.exchange.bytes_pulled for member in members]
        await step_all(members, [LARGE.random(100 * seed + rank) for rank in range(len(members))])
        for other in members[1:]:
            assert_equal(members[0], other)
    return [m.exchange.bytes_pulled - b for m, b in zip(members, before, strict=True)]


@pytest.mark.parametrize("local", [True, False], ids=["unix", "tcp"])
async def test_workers_hold_the_same_bits_near_the_servers_value_for_a_quarter_of_the_bytes(
    local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "why_not_share", "the test says so")
    async with Rig(servers=2, start_workers=3, replicas=2, codec="int8", local=local) as rig:
        members = await rig.workers(3, LARGE)
        assert await rounds(members, 1, 2, 3, 4) == 3 * [CODED_BYTES]
        assert_near(rig, members[0], most=1.5 / 254)  # a round changes numbers by 1.5 at most


async def test_worker_that_joins_and_one_that_changed_its_parameters_read_all_of_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Client, "why_not_share", "the test says so")
    async with Rig(servers=2, start_workers=2, codec="int8") as rig:
        members = await rig.workers(2, LARGE)
        await rounds(members, 1, 2)
        late = rig.worker(LARGE, seed=9)
        joining = late.start(late.join())
        await eventually(lambda: late.id in rig.ledger.joining)
        await rounds(members, 7)
        await joining
        assert_equal(late, members[0])
        members.append(late)
        members[1].parameters[0].data[17] = 3.0
        pulled = await rounds(members, 3)
        assert pulled[0] == pulled[2] == CODED_BYTES
        assert pulled[1] == 4 * 25_600 + CODED_BYTES - 25_600 - 4 * 100
        assert await rounds(members, 4) == 3 * [CODED_BYTES]


async def test_worker_with_shared_memory_and_one_without_hold_the_same_bits() -> None:
    async with Rig(servers=2, start_workers=2, codec="int8") as rig:
        near, far = members = [rig.worker(LARGE), rig.worker(LARGE, seed=1)]
        far.exchange.shared.adopt = lambda _: None  # type: ignore[method-assign]
        await together(*(member.join() for member in members))
        pulled = await rounds(members, 1, 2, 3)
        assert pulled == [VALUE_BYTES, CODED_BYTES]
        assert near.exchange.shared.is_on
        assert_near(rig, near, most=1.5 / 254)


@pytest.mark.parametrize("reads", ["none", "one", "both"])
async def test_failover_in_a_round_leaves_all_workers_with_the_same_bits(
    reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who read the round from the dead primary has the same as who reads it from its successor."""
    monkeypatch.setattr(Client, "why_not_share", "the test says so")
    async with Rig(servers=3, start_workers=2, replicas=2, codec="int8") as rig:
        members = await rig.workers(2, LARGE)
        await eventually(lambda: all(entry.in_sync for entry in rig.entries.values()))
        await rounds(members, 1, 2)
        for rank, member in enumerate(members):
            member.give(LARGE.random(rank))
        await together(*(member.exchange.push() for member in members))
        commits = await together(*(member.exchange.vote() for member in members))
        first = {"none": 0, "one": 1, "both": 2}[reads]
        before = [member.exchange.bytes_pulled for member in members]
        for member, commit in zip(members[:first], commits, strict=False):
            await member.exchange.pull(commit)
        await rig.kill_server(rig.entries[CODED[0]].primary)
        for member, commit in zip(members[first:], commits[first:], strict=True):
            await member.exchange.pull(commit)
        assert_equal(*members)
        for member, pulled in zip(members, before, strict=True):
            assert member.exchange.bytes_pulled - pulled == CODED_BYTES
        assert await rounds(members, 4, 5) == 2 * [CODED_BYTES]
        assert_near(rig, members[0], most=1.5 / 254)


async def test_blocks_that_move_take_what_workers_hold_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Client, "why_not_share", "the test says so")
    async with Rig(servers=2, start_workers=2, codec="int8") as rig:
        members = await rig.workers(2, LARGE)
        await rounds(members, 1, 2)
        third = await rig.start_server()
        await together(rounds(members, 3), rig.move_all(third))
        assert await rounds(members, 4) == 2 * [CODED_BYTES]


async def test_training_converges_as_with_exact_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear convergence to a target: what workers lack of the values shrinks with the steps."""
    monkeypatch.setattr(Client, "why_not_share", "the test says so")
    blueprint = Blueprint(shapes=((20_000,),), options={"lr": 0.5}, block_bytes=102_400)
    (target,) = blueprint.random(77)
    lost: dict[str, list[float]] = {}
    for text in ("int8", "int8:values=false"):
        async with Rig(start_workers=1, codec=text) as rig:
            (one,) = await rig.workers(1, blueprint)
            for _ in range(24):
                (value,) = one.values()
                lost.setdefault(text, []).append(float((value - target).square().mean()))
                await one.step([value - target])
    coded, plain = lost["int8"], lost["int8:values=false"]
    assert coded[-1] < 1e-12 * coded[0]
    for mine, its in zip(coded[:20], plain, strict=False):
        assert mine == pytest.approx(its, rel=0.1)


@pytest.mark.parametrize("consistency", ["async", "bounded"])
async def test_values_outside_of_rounds_are_read_as_they_are(
    consistency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.counted import MODES

    monkeypatch.setattr(Client, "why_not_share", "the test says so")
    async with Rig(start_workers=1, codec="int8", **MODES[consistency]) as rig:
        (one,) = await rig.workers(1, LARGE)
        assert await rounds([one], 1, 2) == [VALUE_BYTES]
        held = one.values()[0].split(25_600)
        assert all(torch.equal(exact(rig, b), part) for b, part in zip(CODED, held, strict=True))
