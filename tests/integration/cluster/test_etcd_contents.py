"""Keys and values in etcd that elasticps did not write: told, counted, nothing else disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from aetcd import rpc

from elasticps.core.records import JobSpec, encode
from elasticps.store import Store
from tests.integration.cluster.acts import LOOK_S, SCRIPTS, WAIT_S, Cluster
from tests.integration.cluster.conftest import Script
from tests.integration.cluster.daemons import started_daemon

pytestmark = pytest.mark.asyncio(loop_scope="package")

GARBAGE = b"\x00 not ours"


@pytest_asyncio.fixture(loop_scope="package")
async def store(shared_cluster: Cluster) -> AsyncIterator[Store]:
    """The cluster's etcd; what a test adds to it is taken out again."""
    store, root = shared_cluster.local.store, shared_cluster.local.keys.root
    before = {item.key for item in (await store.list(root)).items}
    yield store
    for item in (await store.list(root)).items:
        if item.key not in before:
            await store.delete(item.key)


async def counts(cluster: Cluster) -> list[int]:
    """What each daemon could not read so far."""
    nodes = cluster.local.nodes.values()
    return [(await cluster.get("/api/v1/local", node.http))["foreign_values"] for node in nodes]


@pytest.mark.parametrize(
    "key",
    [
        "nodes/stranger",
        "drains/n1",
        "jobs/garbled/spec",
        "jobs/garbled/status",
        "jobs/garbled/model",
        "jobs/garbled/plan/00000",
        "jobs/garbled/workers/n1.77",
        "jobs/garbled/reports/n1",
        "jobs/garbled/unheard-of",
        "altogether/else",
    ],
)
async def test_foreign_value_is_told_and_counted_by_every_daemon_and_changes_nothing(
    shared_cluster: Cluster, store: Store, key: str
) -> None:
    before = await counts(shared_cluster)
    status = await shared_cluster.status()
    full = shared_cluster.local.keys.root + key

    await store.put(full, GARBAGE)

    async with asyncio.timeout(WAIT_S):
        while await counts(shared_cluster) != [count + 1 for count in before]:
            await asyncio.sleep(LOOK_S)
    for node in shared_cluster.local.nodes:
        assert f"that is not ours: {full}" in shared_cluster.log_of(node)
    after = await shared_cluster.status()
    assert [(node.node, node.state) for node in after.nodes] == [("n1", "ready"), ("n2", "ready")]
    assert [job.job for job in after.jobs] == [job.job for job in status.jobs]
    assert after.leader == status.leader


async def test_key_that_is_no_text_stops_no_daemon(
    shared_cluster: Cluster, store: Store, script: Script
) -> None:
    key = shared_cluster.local.keys.root.encode() + b"nodes/\xff"
    put, delete = rpc.PutRequest(key=key, value=GARBAGE), rpc.DeleteRangeRequest(key=key)
    await store.endpoints.call(lambda link: link.kv.Put, put)
    try:
        job = await shared_cluster.submit(script("raise SystemExit(7)"), max_workers=1)
        assert (await job.ended()).reason.endswith("the script exited with 7")
        assert len((await shared_cluster.status()).nodes) == 2
    finally:
        await store.endpoints.call(lambda link: link.kv.DeleteRange, delete)


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"env": {"A=B": "1"}}, "'A=B' is no environment variable"),
        ({"argv": ("a\0b",)}, "an argument contains a NUL"),
        ({"cwd": "/nonesuch"}, "could not be started"),
    ],
    ids=["env", "argv", "cwd"],
)
async def test_job_that_no_process_can_be_started_for_fails_and_stops_no_daemon(
    shared_cluster: Cluster, store: Store, wish: dict[str, object], reason: str
) -> None:
    name = f"unfit-{next(iter(wish))}"
    spec = JobSpec(name=name, argv=("train.py",), cwd=str(SCRIPTS), max_workers=1)
    fields = msgspec.structs.asdict(spec) | wish
    await store.put(shared_cluster.local.keys.job_spec(name), encode(JobSpec(**fields)))

    ended = await shared_cluster.until(
        lambda status: next((job for job in status.jobs if job.job == name and job.final), None),
        f"{name} ends",
    )

    assert ended.state == "FAILED"
    assert reason in ended.reason


async def test_newer_format_is_refused_with_both_versions(
    shared_cluster: Cluster, store: Store
) -> None:
    await store.put("/elasticps/future/meta", b'{"format": 7, "more": true}')

    async with started_daemon(shared_cluster, "f1", cluster="future") as future:
        assert await future.exit_code() == 1

    assert "etcd holds format 7, this version of elasticps speaks format 1" in future.log()
    assert "Traceback" not in future.log()
    await store.delete("/elasticps/future/meta")
