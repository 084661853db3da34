"""What one seed is about: the cluster, the job, the rates, and how much goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.consistency import Consistency
from elasticps.core.ids import BlockId
from elasticps.core.ledger import Ledger
from elasticps.core.lending import DYNAMIC, LEASED, LOCAL, STATIC
from elasticps.core.ranges import DataSpec
from elasticps.core.roster import Roster
from elasticps.sim.clock import MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a job's spec promises. ``blocks`` does not count the ledger.

    ``push_every``: the workers push for every so many rounds, and exchange among themselves for the
    others. ``at_once``: of how many blocks, the last ones, pushes are applied as they come.
    ``prefers``: each worker wishes some of the blocks led on its own node, others with each set of
    members. ``grouped``: what a server leads of them is asked for in one frame. ``ahead``: of how
    many steps to come each worker likes to know its samples. ``saves``: the main worker has a
    checkpoint written before every so many rounds; 0: never.
    """

    blocks: int
    replicas: int
    min_insync: int
    consistency: Consistency
    staleness: int
    backup_workers: int
    start_workers: int
    data: DataSpec | None
    data_policy: str = DYNAMIC
    push_every: int = 1
    at_once: int = 0
    prefers: bool = False
    grouped: bool = False
    ahead: int = 0
    saves: int = 0

    @property
    def in_rounds(self) -> bool:
        return self.consistency is Consistency.SYNC

    @property
    def block_ids(self) -> list[BlockId]:
        return [BlockId(number) for number in range(1, self.blocks + 1)]

    def has_rounds(self, block: BlockId) -> bool:
        """Are pushes of this block staged, and counted by whole rounds?"""
        return self.in_rounds and block <= self.blocks - self.at_once

    @property
    def round_blocks(self) -> list[BlockId]:
        return [block for block in self.block_ids if self.has_rounds(block)]

    @property
    def blocks_at_once(self) -> list[BlockId]:
        """In a job that goes by rounds."""
        return self.block_ids[self.blocks - self.at_once :]

    def new_ledger(self) -> Roster:
        start, policy = self.start_workers, self.data_policy
        if self.in_rounds:
            backups = self.backup_workers
            return Ledger(start_workers=start, backup_workers=backups, data_policy=policy)
        bounded = self.consistency is Consistency.BOUNDED
        staleness = self.staleness if bounded else None
        return ClockLedger(start_workers=start, staleness=staleness, data_policy=policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Times are microseconds. ``detects``: deaths are told at once, not by the lease alone."""

    nodes: int
    slots: int
    job: Job
    mean_delay: int
    compute: int
    ttl: int
    watch_lag: int
    plan_delay: int
    detects: bool
    faults: int
    calm: int
    spares: bool
    """Is the last living holder of a block left alone?"""


SPEEDY = {(DYNAMIC, 200): LEASED, (STATIC, 500): LOCAL}
"""Of the scenarios with these policies and delays: the policy that they have instead."""


def drawn(random: Random) -> Scenario:
    nodes = random.choice([2, 2, 3, 3, 3, 4])
    slots = random.choice([1, 1, 1, 2]) if nodes < 4 else 1
    job = _job(random, nodes, nodes * slots)
    scenario = Scenario(
        nodes=nodes,
        slots=slots,
        job=job,
        mean_delay=random.choice([200, 500, 1000]),
        compute=random.choice([2, 5, 10]) * MS,
        ttl=random.choice([60, 120]) * MS,
        watch_lag=random.choice([0, 1, 5]) * MS,
        plan_delay=random.choice([0, 2, 20]) * MS,
        detects=random.random() < 0.6,
        faults=random.choice([1, 1, 2, 2, 3, 4]),
        calm=random.choice([5, 20, 60]) * MS,
        spares=random.random() < 0.93,
    )
    data_policy = random.choice([DYNAMIC, STATIC])
    # Without a draw of its own: what other seeds have found stays found.
    data_policy = SPEEDY.get((data_policy, scenario.mean_delay), data_policy)
    in_step = job.in_rounds and not job.backup_workers
    push_every = random.choice([2, 3]) if in_step and random.random() < 0.3 else 1
    job = replace(job, data_policy=data_policy, push_every=push_every)
    at_once = 1 if in_step and job.blocks > 1 and random.random() > 0.6 else 0
    prefers = random.random() < 0.3
    job = _later_drawn(random, replace(job, at_once=at_once, prefers=prefers))
    return replace(scenario, job=job)


def _later_drawn(random: Random, job: Job) -> Job:
    """What the simulator has learned last is drawn last: what other seeds have found stays."""
    grouped = job.blocks > 1 and random.random() < 0.4
    ahead = random.choice([0, 0, 1, 3]) if job.data is not None else 0
    saves = random.choice([0, 0, 0, 2, 3])
    blocks = 3 if grouped else job.blocks
    return replace(job, blocks=blocks, grouped=grouped, ahead=ahead, saves=saves)


def _job(random: Random, nodes: int, workers: int) -> Job:
    consistency = random.choice(
        [Consistency.SYNC, Consistency.SYNC, Consistency.BOUNDED, Consistency.ASYNC]
    )
    replicas = random.choice([1, 2, 2, 2, 3])
    start = random.randint(1, min(workers, 3))
    bounded = consistency is Consistency.BOUNDED
    sync = consistency is Consistency.SYNC
    data = DataSpec(
        size=random.choice([7, 30, 100]),
        batch_size=random.randint(1, 6),
        epochs=random.choice([1, 4]),
        seed=0,
    )
    return Job(
        blocks=random.choice([1, 2, 2]),
        replicas=replicas,
        min_insync=random.choice([1, 1, 2]) if min(replicas, nodes) > 1 else 1,
        consistency=consistency,
        staleness=random.choice([0, 1, 2]) if bounded else 0,
        backup_workers=random.randint(0, start - 1) if sync and random.random() < 0.4 else 0,
        start_workers=start,
        data=data if random.random() < 0.5 else None,
    )
