"""A job in which every push is a 1 at a place of its own: what was counted can be read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elasticps.core.consistency import Consistency
from elasticps.core.ids import LEDGER, BlockId, WorkerId
from elasticps.core.replica import Commit
from elasticps.server.parameter_block import ParameterBlock
from elasticps.testing.members import Blueprint, Member, together
from elasticps.testing.rig import Rig
from tests.support.checkers import OneHot, OneHotSet, brought_up, digest
from tests.support.wire import eventually

PLACES = 2048
BLOCKS = 4
COUNTED = Blueprint(
    shapes=((PLACES,),) * BLOCKS,
    options={"lr": 1.0},
    dtype=torch.float64,
    zeros=True,
    block_bytes=8 * PLACES,
)

ASYNC: dict[str, Any] = {"consistency": Consistency.ASYNC}
SYNC: dict[str, Any] = {"consistency": Consistency.SYNC}
BACKUP: dict[str, Any] = {"consistency": Consistency.SYNC, "backup_workers": 1}


def bounded(staleness: int) -> dict[str, Any]:
    return {"consistency": Consistency.BOUNDED, "staleness": staleness}


CLOCKS = {"lockstep": bounded(0), "bounded": bounded(2), "async": ASYNC}
"""Every worker has a clock of its own."""
MODES = {**CLOCKS, "sync": SYNC, "backup workers": BACKUP}


class CountedJob:
    """The members of a rig's job, and the push that each has in hand."""

    blueprint = COUNTED

    def __init__(self, rig: Rig, members: Sequence[Member]) -> None:
        self.rig = rig
        self.members = list(members)
        self.one_hots = OneHotSet(PLACES)
        self.in_hand: dict[Member, OneHot] = {}
        self.numbered: dict[WorkerId, list[OneHot]] = {}

    @classmethod
    async def begun(cls, rig: Rig, workers: int) -> CountedJob:
        job = cls(rig, await rig.workers(workers, COUNTED))
        await eventually(job.is_settled)
        return job

    # -- a member's acts ------------------------------------------------------------------------

    def give(self, member: Member) -> None:
        push = self.in_hand[member] = self.one_hots.next_of(member.id)
        member.give([self.one_hots.gradient(push)] * BLOCKS)
        self.numbered.setdefault(member.id, []).append(push)

    async def push(self, member: Member) -> None:
        await member.exchange.push()

    async def whole(self, member: Member) -> Commit:
        """Push what is in hand and go on to the end of the step, as a strategy does."""
        await self.push(member)
        return await self.rest(member)

    async def rest(self, member: Member) -> Commit:
        """The step from the vote on."""
        commit = await member.exchange.vote()
        while commit is None:
            await self.push(member)
            commit = await member.exchange.vote()
        await self.read(member, commit)
        return commit

    async def read(self, member: Member, commit: Commit) -> None:
        counted = member.exchange._counted
        await member.exchange.pull(commit)
        if counted:
            self.in_hand[member].acknowledged(len(commit.contributors))
        else:
            self.in_hand[member].refused()

    async def step(self, member: Member) -> Commit:
        self.give(member)
        return await self.whole(member)

    async def rounds(self, count: int) -> None:
        for _ in range(count):
            await together(*(self.step(member) for member in self.members))

    async def kill(self, member: Member) -> None:
        self.members.remove(member)
        await self.rig.kill(member)

    # -- where the job is -----------------------------------------------------------------------

    @property
    def blocks(self) -> list[BlockId]:
        return [block for block in self.rig.entries if block != LEDGER]

    def primary(self, block: BlockId) -> ParameterBlock:
        return self.rig.primary(block).parameter_block(block)

    def all_hold_back(self, member: Member) -> bool:
        """Every block has the member's push and has not answered it."""
        return all(member.id in self.primary(block)._staging.held for block in self.blocks)

    def is_settled(self) -> bool:
        """Every block and the ledger has all the copies that there are servers for."""
        copies = min(self.rig._replicas, len(self.rig.sites))
        entries = self.rig.entries.values()
        return all(len(e.holders) == copies and not e.learners for e in entries)

    def sees(self, member: Member, worker: WorkerId, count: int) -> bool:
        """Has the member read the first ``count`` pushes of a worker, each applied once?"""
        places = [push.place for push in self.numbered.get(worker, [])[:count]]
        return all(bool((value[places] == -1.0).all()) for value in member.values())

    def has_heirs(self) -> bool:
        """Any server may die: another one holds all that it holds."""
        return all(len(entry.holders) > 1 for entry in self.rig.entries.values())

    # -- what must be true at the end -----------------------------------------------------------

    async def assert_whole(self) -> None:
        """No push is lost, counted twice or in some blocks alone, and replicas are equal."""
        for member in self.members:
            await member.exchange.read()
            blocks = [value.reshape(-1) for value in member.values()]
            most = len(self.numbered) if self.in_rounds else 1
            faults = self.one_hots.faults(blocks, most, in_rounds=self.in_rounds)
            assert not faults, faults
            verdict = await member.exchange.audit()
            assert (verdict.lost, verdict.duplicated) == (0, 0)
        await eventually(self.is_settled)
        for block, entry in self.rig.entries.items():
            held = [self.rig.servers[server].replica(block) for server in entry.holders]
            commit = self.rig.ledger.last if self.in_rounds else None
            digests = {digest(brought_up(item, commit)) for item in held if item is not None}
            assert len(digests) == 1, block

    @property
    def in_rounds(self) -> bool:
        return self.members[0].exchange._in_rounds
