"""How a daemon leaves when it is told to by signals, with somebody to take over and without.

The tests are the acts of one play, in order.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.cluster.acts import Cluster, Training, started

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAST_WORDS = "leaving with blocks or workers of active jobs still here"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Its daemons take an hour to drain, where nothing tells them otherwise."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ELASTICPS_DRAIN_TIMEOUT", "3600")
        async with started(2, tmp_path_factory.mktemp("leaving")) as cluster:
            yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def job(cluster: Cluster) -> Training:
    job = await cluster.train(start_workers=2)
    await job.is_trained_by("n1", "n2")
    return job


async def test_sigterm_drains_a_daemon_whose_blocks_another_can_take(
    cluster: Cluster, job: Training
) -> None:
    cluster.signal("n2", signal.SIGTERM)

    assert await cluster.exit_code("n2") == 0
    await job.lies_on("n1")
    await job.is_trained_by("n1")
    await job.goes_on()
    assert await cluster.record("n2") is None
    assert await cluster.local.store.get(cluster.local.keys.drain("n2")) is None
    assert LAST_WORDS not in cluster.log_of("n2")


async def test_second_sigterm_does_not_wait_for_a_drain_that_cannot_end(
    cluster: Cluster, job: Training
) -> None:
    cluster.signal("n1", signal.SIGTERM)
    await job.until(
        lambda look: look.reason == "waiting for a node that may run workers", "has no node"
    )
    assert cluster.local.nodes["n1"].process.returncode is None

    cluster.signal("n1", signal.SIGTERM)

    assert await cluster.exit_code("n1") == 1
    assert LAST_WORDS in cluster.log_of("n1")
    assert await cluster.record("n1") is None
    keys = cluster.local.keys
    assert await cluster.local.store.get(keys.drain("n1")) is None
    # The next test's node is not to start this job's workers anew.
    await cluster.local.store.put(keys.job_cancel(job.name), b"{}")


async def test_only_node_leaves_its_running_job_when_the_time_to_drain_is_over_and_says_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELASTICPS_DRAIN_TIMEOUT", "2.5")
    await cluster.add_node("n3")
    job = await cluster.train()
    await job.is_trained_by("n3")

    cluster.signal("n3", signal.SIGTERM)

    assert await cluster.exit_code("n3") == 1
    log = cluster.log_of("n3")
    assert "draining for at most 2.5 s; ask again to leave at once" in log
    assert LAST_WORDS in log
    assert "Traceback" not in log
    assert await cluster.record("n3") is None
