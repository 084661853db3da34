"""One job trains all through this file while its workers, servers, a daemon and etcd fail in turn.

The tests are the acts of one play, in order. With two replicas a block nothing may be lost. Then a
job loses the only copy that it keeps, and another sees both daemons leave, as signals tell them to.
"""

from __future__ import annotations

import os
import signal

import pytest
import pytest_asyncio

from elasticps.cli import answers
from elasticps.core.ids import BlockId, WorkerId
from elasticps.core.records import ServerRecord
from elasticps.store import EmbeddedEtcd
from elasticps.wire.address import Address
from elasticps.wire.connection import connect
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import HelloMeta, encode
from tests.integration.cluster.acts import WAIT_S, Cluster, Training, kill
from tests.support.processes import runs

pytestmark = pytest.mark.asyncio(loop_scope="package")

LAST_WORDS = "leaving with blocks or workers of active jobs still here"


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def job(fragile_cluster: Cluster) -> Training:
    job = await fragile_cluster.train(start_workers=2, audit=True)
    await job.is_trained_by("n1", "n2")
    return job


async def test_killed_worker_is_started_again_as_another_life(
    fragile_cluster: Cluster, job: Training
) -> None:
    (first,) = [worker for worker in (await job.look()).workers if worker.node == "n2"]
    (pid,) = await job.worker_pids("n2")

    kill(pid)

    again = await job.until(
        lambda look: next((w for w in look.workers if w.uid == first.uid and w.reason), None),
        "tells the death",
    )
    assert (again.state, again.reason) == ("killed", "killed by SIGKILL (out of memory?)")
    trained = await job.is_trained_by("n1", "n2")
    (second,) = [w for w in trained.workers if w.node == "n2" and w.state == "running"]
    assert second.uid != first.uid
    await job.goes_on()


@pytest.mark.long
async def test_killed_shard_server_is_followed_by_its_backups(
    fragile_cluster: Cluster, job: Training
) -> None:
    await job.until(has_two_copies, "has two copies of each block")
    server = await fragile_cluster.shard_server_pid("n2")
    kill(server)
    await job.goes_on()
    await job.until(has_two_copies, "has two copies of each block again")
    assert await fragile_cluster.shard_server_pid("n2") != server
    await job.is_trained_by("n1", "n2")


@pytest.mark.long
async def test_daemon_stopped_past_its_lease_serves_nobody_and_is_replaced_by_backups(
    fragile_cluster: Cluster, job: Training
) -> None:
    status = await fragile_cluster.status()
    stopped = next(node.node for node in status.nodes if not node.leader)
    before = await fragile_cluster.record(stopped)
    assert before is not None
    assert await serves(fragile_cluster, before.servers[0])
    server = await fragile_cluster.shard_server_pid(stopped)
    (worker,) = await job.worker_pids(stopped)

    async with fragile_cluster.paused(stopped):
        await job.until(lambda look: stopped not in look.blocks_by_node, "is led by backups")
        assert not await serves(fragile_cluster, before.servers[0])
        await job.goes_on()

    await job.until(has_two_copies, "has two copies of each block again")
    await job.is_trained_by("n1", "n2")
    await job.goes_on()
    after = await fragile_cluster.record(stopped)
    assert after is not None
    assert (after.incarnation, after.servers) == (before.incarnation, before.servers)
    assert await fragile_cluster.shard_server_pid(stopped) == server
    assert not runs(worker)


async def test_cluster_recovers_when_etcd_was_silent_for_longer_than_every_lease(
    etcd: EmbeddedEtcd, fragile_cluster: Cluster, job: Training
) -> None:
    servers = [await fragile_cluster.shard_server_pid(node) for node in ("n1", "n2")]

    os.kill(etcd.pid, signal.SIGSTOP)
    try:
        # Each daemon ends its workers at its own deadline, for the cluster will call them dead.
        workers = await job.worker_pids()
        await fragile_cluster.until(lambda _: not any(map(runs, workers)), "no worker lives")
        await job.until(lambda look: look.state == "RUNNING", "is still shown")
    finally:
        os.kill(etcd.pid, signal.SIGCONT)

    await job.is_trained_by("n1", "n2")
    await job.goes_on()
    assert [await fragile_cluster.shard_server_pid(node) for node in ("n1", "n2")] == servers


async def test_job_whose_plan_and_status_are_overwritten_in_etcd_trains_on_and_heals(
    fragile_cluster: Cluster, job: Training
) -> None:
    store, keys = fragile_cluster.local.store, fragile_cluster.local.keys
    plan = await store.get(keys.plan_part(job.name, 0))
    assert plan is not None

    await store.put(plan.key, b"\0 not ours")
    told = await job.until(lambda look: "cannot be read" in look.reason and look, "tells it")
    assert told.reason == "its plan in etcd cannot be read: its blocks stay put"
    await job.goes_on()
    await store.put(plan.key, plan.value)
    await job.until(lambda look: look.reason == "2 workers", "heals")

    status = await store.get(keys.job_status(job.name))
    assert status is not None
    await store.put(status.key, b"\0 not ours")
    told = await job.until(lambda look: "cannot be read" in look.reason and look, "tells it")
    assert told.reason == "its status in etcd cannot be read: it is left alone"
    await job.goes_on()
    await store.put(status.key, status.value)

    healed = await job.until(lambda look: look.reason == "2 workers" and look, "heals")
    assert {worker.uid for worker in healed.workers} == {worker.uid for worker in told.workers}


async def test_after_all_of_it_the_job_ends_at_its_round_and_no_push_is_lost(
    job: Training,
) -> None:
    ended = await job.finish()

    assert (ended.state, ended.round) == ("SUCCEEDED", job.goal)
    assert ended.verdict.acknowledged > 0
    assert (ended.verdict.lost, ended.verdict.duplicated) == (0, 0)
    results = job.results()
    assert [results[node]["round"] for node in ("n1", "n2")] == [job.goal, job.goal]
    assert results["n1"]["numbers"] == results["n2"]["numbers"]


async def test_only_copy_that_is_killed_fails_its_job_by_name_and_a_new_server_serves_the_next(
    fragile_cluster: Cluster,
) -> None:
    job = await fragile_cluster.train(max_workers=1, replicas=1)
    await job.lies_on("n1", "n2")
    await job.goes_on(2)
    server = await fragile_cluster.shard_server_pid("n2")
    held = (await job.look()).blocks_by_node["n2"]

    kill(server)

    ended = await job.ended()
    assert ended.state == "FAILED"
    assert ended.reason.startswith(f"{held} blocks are lost: the shard server of n2 died")
    await job.is_left_by_all()
    assert await fragile_cluster.shard_server_pid("n2") != server

    following = await fragile_cluster.train(max_workers=1)
    assert set((await following.lies_on("n1", "n2")).blocks_by_node) == {"n1", "n2"}
    assert (await following.finish(after=5)).state == "SUCCEEDED"


# -- signals, of which the last end both daemons ----------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def leaving(fragile_cluster: Cluster) -> Training:
    job = await fragile_cluster.train(start_workers=2)
    await job.is_trained_by("n1", "n2")
    return job


async def test_sigterm_drains_a_daemon_whose_blocks_another_can_take(
    fragile_cluster: Cluster, leaving: Training
) -> None:
    fragile_cluster.signal("n2", signal.SIGTERM)

    assert await fragile_cluster.exit_code("n2") == 0
    await leaving.lies_on("n1")
    await leaving.is_trained_by("n1")
    await leaving.goes_on()
    assert await fragile_cluster.record("n2") is None
    assert await fragile_cluster.local.store.get(fragile_cluster.local.keys.drain("n2")) is None
    assert LAST_WORDS not in fragile_cluster.log_of("n2")


async def test_second_sigterm_does_not_wait_for_a_drain_that_cannot_end(
    fragile_cluster: Cluster, leaving: Training
) -> None:
    fragile_cluster.signal("n1", signal.SIGTERM)
    await leaving.until(
        lambda look: "waiting for a node that may run workers" in look.reason, "has no node"
    )
    assert fragile_cluster.local.nodes["n1"].process.returncode is None

    fragile_cluster.signal("n1", signal.SIGTERM)

    assert await fragile_cluster.exit_code("n1") == 1
    assert LAST_WORDS in fragile_cluster.log_of("n1")
    assert await fragile_cluster.record("n1") is None
    keys = fragile_cluster.local.keys
    assert await fragile_cluster.local.store.get(keys.drain("n1")) is None


def has_two_copies(look: answers.Job) -> bool:
    return look.under_replicated == 0 and look.pending_moves == 0


async def serves(cluster: Cluster, server: ServerRecord) -> bool:
    """Whether the shard server serves clients, whatever it holds."""
    async with await connect(Address.parse(server.tcp), timeout_s=WAIT_S) as connection:
        hello = encode(HelloMeta(cluster=cluster.local.keys.cluster, caller="1"))
        await connection.request(Header(Kind.HELLO), hello, timeout_s=WAIT_S)
        probe = Header(Kind.STATUS, block=BlockId(1), worker=WorkerId(1))
        reply = await connection.request(probe, timeout_s=WAIT_S)
    return reply.header.status is not Status.NOT_SERVING
