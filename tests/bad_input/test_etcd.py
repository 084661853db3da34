"""Bad input by etcd: counted and told by every daemon, and nobody's decision goes by it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aetcd import rpc

from elasticps.core.blocks import Model
from elasticps.core.ids import BlockId, JobName, NodeId, PlanEpoch, ServerId
from elasticps.core.plan import Entry, encode_part
from elasticps.core.records import (
    JobSpec,
    JobState,
    JobStatus,
    NodeRecord,
    WorkerRecord,
    WorkerState,
    encode,
)
from elasticps.core.sound import check_described
from elasticps.daemon.leader import Now, Orphans, Write, decide
from elasticps.daemon.view import JobView
from elasticps.errors import StoreError, UsageError
from elasticps.store import Put, Store
from tests.integration.daemon.conftest import cluster
from tests.integration.daemon.mirror import Mirrored, mirrored
from tests.integration.daemon.test_reports import Reporting, reporting
from tests.support.contents import model_of, server_record
from tests.support.etcd import etcd_server, shared_etcd, store
from tests.support.processes import until

__all__ = ["cluster", "etcd_server", "reporting", "shared_etcd", "store"]

pytestmark = pytest.mark.bad_input

LOST_AFTER_S = 30.0
MIB = 1 << 20
DEEP = b"[" * 100_000
SPEC = JobSpec(name=JobName("job"), argv=("train.py",), cwd="/")
MODEL = model_of(2)
NODE = NodeRecord(
    node=NodeId("b"),
    incarnation="0",
    machine="m",
    http="http://b",
    version="0",
    servers=(server_record("b", "1"),),
)


def spec(**fields: Any) -> bytes:
    return encode(msgspec.structs.replace(SPEC, **fields))


def node(**fields: Any) -> bytes:
    return encode(msgspec.structs.replace(NODE, **fields))


def model(**fields: Any) -> bytes:
    return encode(msgspec.structs.replace(MODEL, **fields))


def parameter(**fields: Any) -> bytes:
    return model(parameters=(msgspec.structs.replace(MODEL.parameters[0], **fields),))


def plan(*servers: str, first: int = 0, **fields: Any) -> bytes:
    return encode_part(
        [
            Entry(block=BlockId(first + offset), primary=ServerId(server), **fields)
            for offset, server in enumerate(servers)
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A value for a key of the job "job" or of node b, what the log says of it, and what of the
    job cannot be read then."""

    key: str
    value: bytes
    says: str = ""
    damages: tuple[str, ...] = ()


STATUS, MODEL_KEY, PART = "jobs/job/status", "jobs/job/model", "jobs/job/plan/00000"
ROWS = {
    # what is no value of ours at all
    "a node of garbage": Row(key="nodes/b", value=b"\0 not ours", says="not a NodeRecord"),
    "a node nested 100,000 deep": Row(key="nodes/b", value=b'{"x":' + DEEP),
    "a node that is no UTF-8": Row(key="nodes/b", value=b'{"node": "\xff\xfe"}'),
    "a node of 1.4 MiB": Row(key="nodes/b", value=b"\0" * (MIB + 2 * MIB // 5)),
    "a drain of garbage": Row(key="drains/b", value=b"\0"),
    "a spec of garbage": Row(key="jobs/other/spec", value=b"\0"),
    "a status of garbage": Row(key=STATUS, value=b"\0", damages=("status",)),
    "a model of garbage": Row(key=MODEL_KEY, value=b"\0", damages=("model",)),
    "a model of 1.4 MiB": Row(
        key=MODEL_KEY, value=b"\0" * (MIB + 2 * MIB // 5), damages=("model",)
    ),
    "a plan of garbage": Row(key=PART, value=b"\0", damages=("plan",)),
    "a plan nested 100,000 deep": Row(key=PART, value=b"\x91" * 100_000, damages=("plan",)),
    "a worker of garbage": Row(key="jobs/job/workers/b.1", value=b"\0"),
    "a report of garbage": Row(key="jobs/job/reports/b", value=b"\0"),
    "a key of nobody": Row(key="altogether/else", value=b"{}"),
    # values of the right types that nobody of ours has written
    "a node under another's name": Row(key="nodes/b", value=node(node="c"), says="field node"),
    "a node of weight 0": Row(key="nodes/b", value=node(weight=0.0), says="field weight"),
    "a node of weight -1": Row(key="nodes/b", value=node(weight=-1.0), says="field weight"),
    "a node of -3 workers": Row(key="nodes/b", value=node(worker_slots=-3), says="0 to"),
    "a node with another's server": Row(
        key="nodes/b", value=node(servers=(server_record("c", "1"),)), says="field servers"
    ),
    "a node at no address": Row(
        key="nodes/b",
        value=node(servers=(msgspec.structs.replace(NODE.servers[0], tcp="tcp:b:70000"),)),
        says="0 to 65535",
    ),
    "a spec of 0 replicas": Row(
        key="jobs/other/spec", value=spec(replicas=0), says="replicas of 0 (field replicas)"
    ),
    "a spec of -1 workers": Row(key="jobs/other/spec", value=spec(start_workers=-1)),
    "a spec of staleness -1": Row(
        key="jobs/other/spec", value=spec(staleness=-1), says="field staleness"
    ),
    "a spec with .. in a path": Row(
        key="jobs/other/spec", value=spec(resume="/a/../b"), says="field resume"
    ),
    "a model of an unknown dtype": Row(
        key=MODEL_KEY, value=parameter(dtype="float33"), says="field dtype", damages=("model",)
    ),
    "a model of blocks of 0 bytes": Row(
        key=MODEL_KEY, value=model(block_bytes=0), says="field block_bytes", damages=("model",)
    ),
    "a model of 2^60 elements": Row(
        key=MODEL_KEY, value=parameter(shape=(1 << 60,)), says="blocks", damages=("model",)
    ),
    "a model of a negative shape": Row(
        key=MODEL_KEY, value=parameter(shape=(-5,)), says="field shape", damages=("model",)
    ),
    "a model of a group that is not there": Row(
        key=MODEL_KEY, value=parameter(group=7), says="field group", damages=("model",)
    ),
    "a plan of an epoch to come": Row(
        key=PART,
        value=plan("a/1", "a/1", "a/1", epoch=PlanEpoch(1 << 40)),
        says="field epoch",
        damages=("plan",),
    ),
    "a plan of another part": Row(
        key=PART, value=plan("a/1", first=5000), says="field first", damages=("plan",)
    ),
    "a plan that has a block twice on a server": Row(
        key=PART,
        value=plan("a/1", "a/1", "a/1", in_sync=(ServerId("a/1"),)),
        says="twice",
        damages=("plan",),
    ),
}


class Led:
    """A real etcd with node a and a job that is planned, and the view that follows it."""

    def __init__(self, cluster: Mirrored) -> None:
        self.cluster = cluster
        self.store, self.keys, self.view = cluster.store, cluster.keys, cluster.view
        self.orphans = Orphans(LOST_AFTER_S)
        self.now = Now(unix=1e9, monotonic=0.0)

    @property
    def job(self) -> JobView:
        return self.view.jobs[JobName("job")]

    def decided(self) -> list[Write]:
        return decide(self.view, self.now, self.orphans)

    async def put(self, key: str, value: bytes) -> None:
        """Past our own limits, as somebody else would; the view has seen it then."""
        request = rpc.PutRequest(key=key.encode(), value=value)
        answer = await self.store.endpoints.call(lambda link: link.kv.Put, request)
        await self.cluster.until(lambda: self.view.revision >= answer.header.revision)

    async def settle(self) -> None:
        """What the leader would write is written, until there is nothing."""
        while writes := self.decided():
            for write in writes:
                for operation in write.operations:
                    assert isinstance(operation, Put)
                    await self.put(operation.key, operation.value)


@pytest_asyncio.fixture
async def led(store: Store) -> AsyncIterator[Led]:
    async with mirrored(store) as cluster:
        led = Led(cluster)
        own = msgspec.structs.replace(
            NODE, node=NodeId("a"), servers=(server_record("a", "1"),), http="http://a"
        )
        await led.put(led.keys.node("a"), encode(own))
        await led.put(led.keys.job_spec("job"), encode(SPEC))
        await led.put(led.keys.job_model("job"), encode(MODEL))
        worker = WorkerRecord(node=NodeId("a"), state=WorkerState.RUNNING)
        await led.put(led.keys.worker("job", "a.1"), encode(worker))
        await led.settle()
        assert (led.job.status and led.job.status.state) is JobState.RUNNING
        yield led


@pytest.mark.parametrize("name", ROWS)
async def test_a_value_that_is_not_ours_is_counted_told_and_gone_by_by_nobody(
    led: Led, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = ROWS[name]
    before, entries = led.view.foreign_values, led.job.entries
    key = led.keys.root + row.key
    held = await led.store.get(key)

    await led.put(key, row.value)

    assert led.view.foreign_values == before + 1
    told = [record.getMessage() for record in caplog.records if key in record.getMessage()]
    assert len(told) == 1
    assert "that is not ours" in told[0]
    assert row.says in told[0]
    assert list(led.view.nodes) == ["a"]
    assert led.job.damaged == sorted(row.damages)
    writes = [operation.key for write in led.decided() for operation in write.operations]
    assert set(writes) <= {led.keys.job_status("job")}

    if held is None:
        await led.store.delete(key)
    else:
        await led.put(key, held.value)
    await led.cluster.until(lambda: not led.job.damaged)
    assert [entry.holders for entry in led.job.entries] == [entry.holders for entry in entries]
    assert led.job.active


@pytest.mark.parametrize("count", [1, 2, 4, 9])
async def test_a_plan_of_too_few_or_too_many_blocks_moves_nothing(led: Led, count: int) -> None:
    await led.put(led.keys.plan_part("job", 0), plan(*["a/1"] * count))
    assert led.job.damaged == ["plan"]
    await led.settle()
    assert led.job.status is not None
    assert "its plan in etcd cannot be read: its blocks stay put" in led.job.status.reason


async def test_a_plan_that_names_an_unknown_node_waits_for_it_and_then_fails_with_its_name(
    led: Led,
) -> None:
    await led.put(led.keys.plan_part("job", 0), plan("ghost/1", "ghost/1", "a/1"))
    await led.settle()
    assert led.job.status is not None
    assert "waiting for ghost to return" in led.job.status.reason
    assert led.job.entries[2].primary == "a/1"

    led.now = Now(unix=1e9, monotonic=LOST_AFTER_S + 1)
    (write,) = led.decided()
    statuses = {op.key: op.value for op in write.operations if isinstance(op, Put)}
    status = msgspec.json.decode(statuses[led.keys.job_status("job")], type=JobStatus)
    assert status.state is JobState.FAILED
    assert "2 blocks are lost: ghost did not return in 30 s" in status.reason


# -- sizes ----------------------------------------------------------------------------------------

TOO_LARGE: dict[str, tuple[Callable[[Store], Any], str]] = {
    "a value of 1.5 MiB": (
        lambda store: store.put("/big", bytes(3 * MIB // 2)),
        f"{MIB} bytes",
    ),
    "a value of a byte too many": (lambda store: store.put("/big", bytes(MIB + 1)), f"{MIB} bytes"),
    "two values of 1 MiB at once": (
        lambda store: store.txn((), [Put("/big", bytes(MIB)), Put("/big2", bytes(MIB))]),
        f"{3 * MIB // 2} bytes",
    ),
    "129 operations at once": (
        lambda store: store.txn((), [Put(f"/big/{number}", b"") for number in range(129)]),
        "128 operations",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_more_than_etcd_takes_is_refused_before_it_is_sent(store: Store, name: str) -> None:
    write, limit = TOO_LARGE[name]
    with pytest.raises(StoreError) as caught:
        await write(store)
    assert caught.value.limit == limit
    assert (await store.list("/big")).items == ()
    assert await store.put("/small", b"goes on")


async def test_what_etcd_itself_refuses_is_an_error_of_ours(store: Store) -> None:
    request = rpc.PutRequest(key=b"/big", value=bytes(2 * MIB - 4096))
    with pytest.raises(StoreError, match="too large"):
        await store.endpoints.call(lambda link: link.kv.Put, request)
    assert await store.put("/small", b"goes on")


async def test_five_values_of_1_4_mib_are_listed_all_the_same(store: Store) -> None:
    """More than gRPC takes in one message by default."""
    for number in range(5):
        request = rpc.PutRequest(key=b"/big/%d" % number, value=bytes(MIB + 2 * MIB // 5))
        await store.endpoints.call(lambda link, request=request: link.kv.Put, request)
    assert len((await store.list("/big")).items) == 5


# -- a worker's word, before it comes to etcd -----------------------------------------------------

DESCRIBED: dict[str, tuple[dict[str, Any], str]] = {
    "blocks of 0 bytes": ({"block_bytes": 0}, "block_bytes"),
    "no parameters": ({"parameters": ()}, "parameters"),
    "an option that JSON has not": ({"options": {"lr": msgspec.msgpack.Ext(5, b"")}}, "options"),
    "an option nested too deep": ({"options": {"lr": [[[[[[[[[0]]]]]]]]]}}, "options"),
    "an option that is a table of numbers": ({"groups": ({"lr": {1: 2}},)}, "options"),
}


@pytest.mark.parametrize("name", DESCRIBED)
async def test_a_model_that_nobody_can_serve_is_not_written_down(
    reporting: Reporting, name: str
) -> None:
    """Each daemon of the cluster would read it."""
    fields, field = DESCRIBED[name]
    described: Model = msgspec.structs.replace(MODEL, **fields)
    with pytest.raises(UsageError) as caught:
        check_described(described)
    assert caught.value.field == field
    reporting.described("a.1", described)
    await until(lambda: reporting.rejected)
    assert f"field {field}" in reporting.rejected["a.1"]
    assert await reporting.model() is None
    reporting.described("a.2", MODEL)
    await until(lambda: reporting.cluster.view.jobs[JobName("job")].model)
    assert reporting.cluster.view.foreign_values == 0


async def test_a_watch_of_a_view_outlives_them_all(led: Led) -> None:
    for row in ROWS.values():
        await led.put(led.keys.root + row.key, row.value)
    assert led.view.foreign_values == len(ROWS)
    await asyncio.sleep(0)
    await led.put(led.keys.node("b"), encode(NODE))
    assert sorted(led.view.nodes) == ["a", "b"]
    assert math.isfinite(led.view.nodes[NodeId("b")].weight)
