"""A job clips by the global norm while a node joins and the servers of its blocks are killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from elasticps.cli import answers
from tests.integration.cluster.acts import Cluster, kill, started
from tests.integration.cluster.scripts.train import trained_alone

pytestmark = pytest.mark.asyncio(loop_scope="function")

LR = 0.5
BOUND = 0.03
"""Below the norm of every gradient of this training."""


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with started(2, tmp_path) as cluster:
        yield cluster


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_clipped_training_equals_the_local_run_whatever_joins_or_is_killed(
    cluster: Cluster,
) -> None:
    options = ("--lr", LR, "--clip-grad-norm", BOUND)
    job = await cluster.train(*options, start_workers=2, audit=True)
    await job.is_trained_by("n1", "n2")
    await job.until(has_two_copies, "has two copies of each block")

    kill(await cluster.shard_server_pid("n1"))
    await job.goes_on()
    await job.until(has_two_copies, "has two copies of each block again")

    await cluster.add_node("n3")
    await job.is_trained_by("n1", "n2", "n3")
    await job.lies_on("n1", "n2", "n3")
    kill(await cluster.shard_server_pid("n2"))
    await job.goes_on()

    ended = await job.finish()

    assert (ended.state, ended.round) == ("SUCCEEDED", job.goal)
    assert (ended.verdict.lost, ended.verdict.duplicated) == (0, 0)
    alone = trained_alone(job.goal, LR, bound=BOUND)
    assert alone != pytest.approx(trained_alone(job.goal, LR), abs=1e-2)
    for result in job.results().values():
        assert result["round"] == job.goal
        assert result["numbers"] == pytest.approx(alone, abs=1e-5)


def has_two_copies(look: answers.Job) -> bool:
    return look.under_replicated == 0 and look.pending_moves == 0
