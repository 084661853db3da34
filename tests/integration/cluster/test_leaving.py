"""How a daemon leaves when it is told to by signals, with somebody to take over and without.

The tests are the acts of one play, in order.
"""

from __future__ import annotations

import signal

import pytest
import pytest_asyncio

from tests.integration.cluster.acts import Cluster, Training

pytestmark = pytest.mark.asyncio(loop_scope="package")

LAST_WORDS = "leaving with blocks or workers of active jobs still here"


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def job(fragile_cluster: Cluster) -> Training:
    job = await fragile_cluster.train(start_workers=2)
    await job.is_trained_by("n1", "n2")
    return job


async def test_sigterm_drains_a_daemon_whose_blocks_another_can_take(
    fragile_cluster: Cluster, job: Training
) -> None:
    fragile_cluster.signal("n2", signal.SIGTERM)

    assert await fragile_cluster.exit_code("n2") == 0
    await job.lies_on("n1")
    await job.is_trained_by("n1")
    await job.goes_on()
    assert await fragile_cluster.record("n2") is None
    assert await fragile_cluster.local.store.get(fragile_cluster.local.keys.drain("n2")) is None
    assert LAST_WORDS not in fragile_cluster.log_of("n2")


async def test_second_sigterm_does_not_wait_for_a_drain_that_cannot_end(
    fragile_cluster: Cluster, job: Training
) -> None:
    fragile_cluster.signal("n1", signal.SIGTERM)
    await job.until(
        lambda look: "waiting for a node that may run workers" in look.reason, "has no node"
    )
    assert fragile_cluster.local.nodes["n1"].process.returncode is None

    fragile_cluster.signal("n1", signal.SIGTERM)

    assert await fragile_cluster.exit_code("n1") == 1
    assert LAST_WORDS in fragile_cluster.log_of("n1")
    assert await fragile_cluster.record("n1") is None
    keys = fragile_cluster.local.keys
    assert await fragile_cluster.local.store.get(keys.drain("n1")) is None
