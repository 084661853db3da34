"""One job is scaled down and up while it trains, and ends with what one process would have.

The tests are the acts of one play, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from elasticps.cli import answers
from elasticps.errors import ElasticError, UsageError
from tests.integration.cluster.acts import Cluster, Training, started
from tests.integration.cluster.scripts.train import trained_alone

pytestmark = pytest.mark.asyncio(loop_scope="module")

LR = 0.05


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with started(2, tmp_path_factory.mktemp("scale")) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def job(cluster: Cluster) -> Training:
    job = await cluster.train("--lr", LR, start_workers=2, max_workers=5, audit=True)
    await job.is_trained_by("n1", "n2")
    return job


async def scale(job: Training, workers: int) -> answers.Job:
    async with job.cluster.api() as api:
        return await api.scale(job.name, workers)


async def main_node(job: Training) -> str:
    def main(look: answers.Job) -> str | None:
        return next((each.node for each in look.workers if each.rank == 0), None)

    return await job.until(main, "has a main worker")


async def test_fewer_workers_the_highest_rank_leaves_and_the_main_one_stays(job: Training) -> None:
    main = await main_node(job)
    before = await job.goes_on()

    await scale(job, 1)

    trained = await job.is_trained_by(main)
    left = [worker for worker in trained.workers if worker.state == "left"]
    assert [worker.reason for worker in left] == ["retired"]
    assert await job.goes_on() > before
    assert await main_node(job) == main
    assert (await job.look()).reason.startswith("1 worker")


async def test_more_workers_begin_where_nodes_are_free(job: Training) -> None:
    await scale(job, 2)

    await job.is_trained_by("n1", "n2")
    await job.goes_on()


async def test_what_no_node_has_room_for_is_told_and_begins_when_there_is(
    cluster: Cluster, job: Training
) -> None:
    await scale(job, 4)

    told = await job.until(lambda look: look if look.workers_asked == 4 else None, "is told")
    assert told.reason.startswith(
        "2 of 4 workers: no node is free (n1 runs 1, n2 runs 1): start a daemon"
    )
    assert told.state == "RUNNING"
    assert told.since_unix > told.submitted_unix

    await cluster.add_node("n3")

    await job.is_trained_by("n1", "n2", "n3")
    await job.until(lambda look: look.reason.startswith("3 of 4 workers: no node"), "has three")
    await job.goes_on()


@pytest.mark.parametrize(
    ("workers", "limit"), [(0, "1 to 5"), (-3, "1 to 5"), (6, "1 to 5"), (1 << 70, "workers")]
)
async def test_a_number_that_cannot_be_is_refused_by_name_and_changes_nothing(
    job: Training, workers: int, limit: str
) -> None:
    with pytest.raises(UsageError, match=limit):
        await scale(job, workers)
    assert (await job.look()).workers_asked == 4


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "workers"),
        ({"workers": "3"}, "workers"),
        ({"workers": True}, "workers"),
        ({"workers": 2.5}, "workers"),
        ({"workers": 3, "force": True}, "force"),
        ([3], "body"),
    ],
    ids=str,
)
async def test_a_body_that_is_not_as_it_should_be_is_told_where(
    job: Training, body: object, told: str
) -> None:
    url = f"{job.cluster.url}/api/v1/jobs/{job.name}/scale"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        assert response.status == 400
        assert told in await response.text()
    assert (await job.look()).workers_asked == 4


async def test_of_two_requests_at_the_same_moment_one_is_refused_or_both_came_in_turn(
    job: Training,
) -> None:
    results = await asyncio.gather(scale(job, 3), scale(job, 2), return_exceptions=True)

    refused = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, ElasticError) for error in refused)
    assert all("at the same moment" in str(error) for error in refused)
    asked = await job.until(
        lambda look: look.workers_asked if look.workers_asked != 4 else None, "is scaled"
    )
    assert asked in (2, 3)


async def test_what_was_trained_is_what_one_process_does_and_no_push_is_lost(
    job: Training,
) -> None:
    await scale(job, 2)
    await job.until(
        lambda look: sum(worker.state == "running" for worker in look.workers) == 2, "has two"
    )
    await job.goes_on()

    ended = await job.finish()

    assert ended.state == "SUCCEEDED"
    verdict = ended.verdict
    assert verdict.acknowledged > 0
    assert (verdict.lost, verdict.duplicated, verdict.unaudited) == (0, 0, 0)
    alone = trained_alone(job.goal, lr=LR)
    for result in job.results().values():
        if result["round"] == job.goal:
            assert result["numbers"] == pytest.approx(alone, abs=1e-4)
    with pytest.raises(UsageError, match="has ended"):
        await scale(job, 1)


async def test_a_job_that_does_not_train_yet_is_not_scaled_below_what_it_begins_with(
    cluster: Cluster,
) -> None:
    waiting = await cluster.train(start_workers=5, max_workers=5)
    await waiting.until(lambda look: "room for 3" in look.reason, "says that there is no room")

    with pytest.raises(UsageError, match="at least 5 until its first round"):
        await scale(waiting, 2)
    await waiting.cancel()
    await waiting.ended()
