"""Bad input by the wire: that connection closes or that request is refused, and nothing else."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
import torch

from elasticps.core.consistency import NonFinite
from elasticps.core.ids import (
    LEDGER,
    BlockId,
    Generation,
    JobKey,
    PlanEpoch,
    Round,
    Seq,
    WorkerId,
)
from elasticps.core.replica import RoundOp
from elasticps.daemon.links import Links
from elasticps.errors import ElasticError, JobFailed, WireError
from elasticps.server.main import _note as note_of_server
from elasticps.testing.members import Blueprint, Member
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import CLUSTER, JOB, RigServer
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.frame import (
    FLAG_EMPTY,
    FLAG_PAYLOAD_CHECKSUM,
    HEADER_SIZE,
    Header,
    Kind,
    Status,
    checksum,
    pack,
    unpack,
)
from elasticps.wire.listener import OnError, listen
from elasticps.wire.messages import (
    HelloMeta,
    OpMeta,
    PullMeta,
    PushMeta,
    StateMeta,
    TensorMeta,
    encode,
)
from tests.support.checkers import digest
from tests.support.wire import PATIENCE_S, Echo, eventually, raw_stream

pytestmark = [pytest.mark.bad_input, pytest.mark.asyncio(loop_scope="module")]

BLUEPRINT = Blueprint(options={"lr": 0.1, "momentum": 0.9})
BLOCK = BlockId(2)
ELEMENTS = 476
VALUE = bytes(4 * ELEMENTS)
MALLORY, BYSTANDER = WorkerId(1_000_000), WorkerId(2_000_000)
HELLO = HelloMeta(CLUSTER, str(MALLORY))
EMPTY_OPTIONS, DEEP = b"\x80", b"\x91" * 100_000 + b"\xc0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A frame after a proper hello, and what must come of it: the field of the WireError that
    closes its connection, or the status of its answer.

    ``overwritten`` bytes (offset, bytes) of the header get it a right checksum, unless ``damaged``.
    ``epoch`` counts from the right one. ``to_backup``: not to the block's primary.
    """

    gives: str | Status
    kind: Kind = Kind.PUSH
    meta: bytes = b""
    payload: bytes = b""
    overwritten: tuple[int, bytes] = (0, b"")
    damaged: bool = False
    hello: HelloMeta | None = HELLO
    job: JobKey = JOB
    worker: WorkerId = MALLORY
    epoch: int = 0
    seq: int = 1
    round: int = 2
    flags: int = 0
    to_backup: bool = False

    def frame(self, epoch: int) -> bytes:
        header = Header(
            self.kind,
            flags=self.flags | (FLAG_PAYLOAD_CHECKSUM if self.payload else 0),
            job=self.job,
            plan_epoch=PlanEpoch(epoch + self.epoch),
            block=BLOCK,
            worker=self.worker,
            seq=Seq(self.seq),
            round=Round(self.round),
            payload_length=0 if self.flags & FLAG_EMPTY else len(self.payload),
            payload_checksum=checksum(self.payload),
        )
        packed = bytearray(pack(header, self.meta))
        offset, data = self.overwritten
        packed[offset : offset + len(data)] = data
        if not self.damaged:
            fixed = bytes(packed[: HEADER_SIZE - 8])
            packed[HEADER_SIZE - 8 : HEADER_SIZE] = struct.pack("<Q", checksum(fixed + self.meta))
        return bytes(packed) + self.payload


def push(weight: float = 1.0, generation: int = 1, **hyper: object) -> bytes:
    return encode(PushMeta(Generation(generation), weight, dict(hyper), 1, None))


def with_option(coded: bytes) -> bytes:
    """A push's meta whose options are these bytes of msgpack."""
    return push().replace(EMPTY_OPTIONS, coded, 1)


def first_value(dtype: str = "float32", shape: tuple[int, ...] = (ELEMENTS,)) -> bytes:
    return encode(StateMeta((TensorMeta("value", dtype, shape, len(VALUE)),)))


OP = OpMeta(version=9, op=RoundOp(Round(2), Generation(1), ((MALLORY, Seq(1)),)))

ROWS = {
    # the frame
    "bad magic": Row(overwritten=(0, b"HTTP"), gives="magic"),
    "another protocol": Row(overwritten=(0, b"GET / HTTP/1.1\r\n"), gives="magic"),
    "unknown version": Row(overwritten=(4, b"\x02"), gives="version"),
    "unknown kind": Row(overwritten=(5, b"\xff"), gives="kind"),
    "unknown flags": Row(overwritten=(6, b"\0\x80"), gives="flags"),
    "unknown status": Row(overwritten=(8, b"\xff\0"), gives="status"),
    "a meta of 4 GiB": Row(overwritten=(36, b"\xff" * 4), gives="meta_length"),
    "a length of 2^63": Row(overwritten=(64, struct.pack("<Q", 2**63)), gives="payload_length"),
    "a length of 2^64 - 1": Row(overwritten=(64, b"\xff" * 8), gives="payload_length"),
    "a length of 0": Row(meta=push(), gives="payload_length"),
    "an empty push with a length": Row(
        flags=FLAG_EMPTY, overwritten=(64, struct.pack("<Q", 4)), gives="payload_length"
    ),
    "a bad header checksum": Row(
        meta=push(), overwritten=(80, bytes(8)), damaged=True, gives="header_checksum"
    ),
    "a flipped bit in the meta": Row(
        meta=push(), overwritten=(HEADER_SIZE, b"\x96"), damaged=True, gives="header_checksum"
    ),
    "a bad payload checksum": Row(
        meta=push(), payload=VALUE, overwritten=(72, bytes(8)), gives="payload_checksum"
    ),
    # the message
    "a meta of garbage": Row(meta=b"\x93\xc1", payload=VALUE, gives="meta"),
    "a meta of another type": Row(meta=encode(PullMeta()), payload=VALUE, gives="meta"),
    "an option nested 100,000 deep": Row(
        meta=with_option(b"\x81\xa2lr" + DEEP), payload=VALUE, gives="meta"
    ),
    "an option that is no UTF-8": Row(
        meta=with_option(b"\x81\xa2\xff\xfe\x01"), payload=VALUE, gives="meta"
    ),
    "a list said to have 2^32 - 1 members": Row(
        meta=with_option(b"\x81\xa2lr\xdd\xff\xff\xff\xff"), payload=VALUE, gives="meta"
    ),
    "an option that the optimizer lacks": Row(
        meta=push(speed=9), payload=VALUE, gives=Status.REFUSED
    ),
    "a text for a number": Row(meta=push(lr="fast"), payload=VALUE, gives=Status.REFUSED),
    "a weight of NaN": Row(meta=push(math.nan), payload=VALUE, gives=Status.REFUSED),
    "a weight of -1": Row(meta=push(-1.0), payload=VALUE, gives=Status.REFUSED),
    # the tensor
    "a gradient that is too short": Row(meta=push(), payload=VALUE[4:], gives="payload_length"),
    "a gradient that is too long": Row(meta=push(), payload=VALUE * 2, gives="payload_length"),
    # who speaks, and for whom
    "a push before hello": Row(hello=None, meta=push(), payload=VALUE, gives="kind"),
    "a pull before hello": Row(hello=None, kind=Kind.PULL, gives="kind"),
    "a hello of another cluster": Row(hello=HelloMeta("other", "7"), gives="cluster"),
    "a push for another worker": Row(
        worker=WorkerId(7), meta=push(), payload=VALUE, gives="worker"
    ),
    "a push for another job": Row(job=JobKey(99), meta=push(), payload=VALUE, gives=Status.UNKNOWN),
    "a word of the control channel": Row(kind=Kind.CONTROL, gives="kind"),
    # when
    "an old epoch": Row(epoch=-1, meta=push(), payload=VALUE, gives=Status.FENCED),
    "a future epoch": Row(epoch=1, meta=push(), payload=VALUE, gives=Status.BEHIND),
    "the last epoch of all": Row(
        overwritten=(24, b"\xff" * 8), meta=push(), payload=VALUE, gives=Status.BEHIND
    ),
    "a round of the past": Row(round=1, meta=push(), payload=VALUE, gives=Status.CONFLICT),
    "a round that overflows": Row(
        round=2**64 - 1, meta=push(), payload=VALUE, gives=Status.CONFLICT
    ),
    "a gap in a replica's ops": Row(
        kind=Kind.OP, to_backup=True, meta=encode(OP), payload=VALUE, gives=Status.CONFLICT
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trained() -> AsyncIterator[tuple[Rig, Member]]:
    """Two servers with both copies of each block, and a worker that has made a step."""
    async with Rig(servers=2, start_workers=1, replicas=2) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await eventually(lambda: all(len(each.holders) == 2 for each in rig.entries.values()))
        await member.step(BLUEPRINT.random(1))
        yield rig, member


def note_of_daemon(conn: Connection, error: ElasticError) -> None:
    Links.lost(None, conn, error)  # type: ignore[arg-type]


def everything(rig: Rig) -> list[object]:
    """What no bad input may change: values, optimizer state, dedup tables, and the ledger."""
    blocks = [block for block in rig.entries if block != LEDGER]
    replicas = [
        digest(rig.servers[server].parameter_block(block))
        for block in blocks
        for server in rig.entries[block].holders
    ]
    return [*replicas, rig.ledger.round, rig.ledger.members]


def values(rig: Rig) -> list[bytes]:
    blocks = [block for block in rig.entries if block != LEDGER]
    return [rig.primary(block).parameter_block(block).tensor.value_bytes() for block in blocks]


def server_of(rig: Rig, row: Row) -> RigServer:
    entry = rig.entries[BLOCK]
    return rig.servers[entry.in_sync[0] if row.to_backup else entry.primary]


def pull(rig: Rig) -> tuple[Header, bytes]:
    epoch = rig.entries[BLOCK].epoch
    header = Header(Kind.PULL, job=JOB, plan_epoch=epoch, block=BLOCK, worker=BYSTANDER)
    return header, encode(PullMeta())


async def sent(server: RigServer, row: Row, epoch: int) -> Status | None:
    """The status of the answer, or None where the connection was closed instead."""
    reader, writer = await asyncio.open_connection(server.tcp.host, server.tcp.port)
    try:
        if row.hello is not None:
            writer.write(pack(Header(Kind.HELLO), encode(row.hello)))
        writer.write(row.frame(epoch))
        answers = 1 + (row.hello is not None)
        async with asyncio.timeout(PATIENCE_S):
            while answers:
                header = unpack(await reader.readexactly(HEADER_SIZE))
                await reader.readexactly(header.meta_length + header.payload_length)
                answers -= 1
        return header.status
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.close()


@pytest.mark.parametrize("name", ROWS)
async def test_a_bad_frame_ends_its_connection_alone_or_is_answered(
    trained: tuple[Rig, Member], name: str
) -> None:
    rig, _ = trained
    row = ROWS[name]
    server = server_of(rig, row)
    server.errors.clear()
    before, counted = everything(rig), server.server.wire_errors
    async with rig.primary(BLOCK).spoken_to(BYSTANDER) as other:
        header, meta = pull(rig)
        held = await other.request(header, meta, timeout_s=PATIENCE_S)

        status = await sent(server, row, rig.entries[BLOCK].epoch)

        if isinstance(row.gives, Status):
            assert (status, server.errors) == (row.gives, [])
            assert server.server.wire_errors == counted
        else:
            assert status is None
            await eventually(lambda: server.server.wire_errors == counted + 1)
            (error,) = server.errors
            assert isinstance(error, WireError)
            assert error.field == row.gives
        again = await other.request(header, meta, timeout_s=PATIENCE_S)
        assert (again.header.status, again.payload) == (Status.OK, held.payload)
    assert everything(rig) == before
    assert rig.accidents == []


async def test_after_all_of_them_the_worker_goes_on(trained: tuple[Rig, Member]) -> None:
    rig, member = trained
    await member.step(BLUEPRINT.random(2))
    assert rig.ledger.round == 2
    verdict = await member.exchange.audit()
    assert (verdict.lost, verdict.duplicated) == (0, 0)


FIRST_VALUES = {
    "shape x dtype beyond the bytes": (first_value(shape=(477,)), "nbytes"),
    "shape x dtype below the bytes": (first_value("float16"), "nbytes"),
    "a shape whose product overflows": (first_value(shape=(1 << 40, 1 << 40)), "shape"),
    "a negative shape": (first_value(shape=(-ELEMENTS,)), "shape"),
    "a dtype that torch lacks": (first_value("float33"), "dtype"),
    "another dtype of the same size": (first_value("int32"), "tensors"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untrained() -> AsyncIterator[Rig]:
    """A server with blocks that have no first value yet."""
    async with Rig(servers=1) as rig:
        rig.worker(BLUEPRINT)
        await eventually(lambda: rig.primary(BLOCK).replica(BLOCK))
        yield rig


@pytest.mark.parametrize("name", FIRST_VALUES)
async def test_a_first_value_that_does_not_fit_is_not_taken(untrained: Rig, name: str) -> None:
    meta, field = FIRST_VALUES[name]
    server = untrained.primary(BLOCK)
    server.errors.clear()
    before = digest(server.parameter_block(BLOCK))
    row = Row(kind=Kind.INIT, meta=meta, payload=b"\x01" * len(VALUE), round=0, gives=field)
    assert await sent(server, row, untrained.entries[BLOCK].epoch) is None
    await eventually(lambda: server.errors)
    assert [error.field for error in server.errors] == [field]
    assert digest(server.parameter_block(BLOCK)) == before


async def test_a_frame_that_is_begun_and_never_ended_ends_its_connection() -> None:
    echo = Echo()
    opened = Address.tcp("127.0.0.1", 0)
    async with (
        listen(opened, echo.connected, on_error=echo.told, stalled_s=0.2) as server,
        await connect(server.address, timeout_s=PATIENCE_S) as other,
        raw_stream(server.address) as stream,
    ):
        before = await other.request(Header(Kind.PULL), b"before", timeout_s=PATIENCE_S)
        stream.write(pack(Header(Kind.PUSH, payload_length=4 << 20)) + b"part")
        await eventually(lambda: server.wire_errors == 1)
        await eventually(lambda: len(server.connections) == 1)
        after = await other.request(Header(Kind.PULL), b"after", timeout_s=PATIENCE_S)
    (error,) = echo.errors
    assert (error.field, error.limit) == ("payload_length", "silence of 0.2 s")
    assert (before.meta, after.meta) == (b"before", b"after")


@pytest.mark.parametrize("note", [note_of_server, note_of_daemon])
async def test_what_a_connection_was_closed_for_is_in_the_log(
    note: OnError, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    async with (
        listen(Address.tcp("127.0.0.1", 0), echo.connected, on_error=note) as server,
        raw_stream(server.address) as stream,
    ):
        stream.write(ROWS["bad magic"].frame(1))
        await eventually(lambda: server.wire_errors == 1)
    (told,) = caplog.messages
    assert "closed for what it sent" in told
    assert "not a frame: b'HTTP' (field magic) (limit: b'EPS1')" in told


async def test_a_frame_that_comes_slowly_is_waited_for() -> None:
    """Twenty pieces, each within the limit, all together far beyond it."""
    echo = Echo()
    frame = pack(Header(Kind.PUSH, payload_length=20)) + b"p" * 20
    async with (
        listen(Address.tcp("127.0.0.1", 0), echo.connected, stalled_s=0.5) as server,
        raw_stream(server.address) as stream,
    ):
        stream.write(frame[:HEADER_SIZE])
        for byte in frame[HEADER_SIZE:]:
            await asyncio.sleep(0.05)
            stream.write(bytes([byte]))
        await eventually(lambda: len(echo.frames) == 1)
    assert server.wire_errors == 0


# -- gradients that are not finite ----------------------------------------------------------------


def counted(rig: Rig) -> int:
    return sum(
        job.counts.nonfinite
        for server in rig.servers.values()
        for job in server.server.table.load().tally.jobs
    )


def look_at_all(rig: Rig) -> None:
    for server in rig.servers.values():
        server.server.table._spot_check._due_s = 0.0


def one_bad(number: float) -> list[torch.Tensor]:
    gradients = BLUEPRINT.full(1.0)
    gradients[0][700] = number
    return gradients


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
async def test_a_gradient_that_is_not_finite_is_applied_as_torch_does_and_counted(
    number: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        look_at_all(rig)
        await member.step(one_bad(number))
        first = member.values()[0]
        assert not first[700].isfinite()
        assert first.isfinite().sum() == first.numel() - 1
        assert counted(rig) == 1
        look_at_all(rig)
        await member.step(BLUEPRINT.full(1.0))
        assert counted(rig) == 1
    assert "a gradient is not finite, nonfinite=apply" in caplog.text


@pytest.mark.parametrize("number", [math.nan, math.inf])
async def test_a_job_may_refuse_them_and_then_its_worker_fails_alone(number: float) -> None:
    async with Rig(start_workers=2, nonfinite=NonFinite.REFUSE) as rig:
        wild, other = await rig.workers(2, BLUEPRINT)
        before = values(rig)
        going = asyncio.create_task(other.step(BLUEPRINT.full(1.0)))
        with pytest.raises(JobFailed, match=r"block 1 is not finite .*nonfinite=refuse"):
            await wild.step(one_bad(number))
        assert values(rig) == before
        assert counted(rig) == 1
        await rig.kill(wild)
        await going
        assert all(value.isfinite().all() for value in other.values())


# -- sequence numbers -----------------------------------------------------------------------------


async def test_a_replayed_push_gets_the_first_ones_answer_and_changes_nothing() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await member.step(BLUEPRINT.full(1.0))
        before, epoch = everything(rig), rig.entries[BLOCK].epoch
        row = Row(
            hello=HelloMeta(CLUSTER, str(member.id)),
            worker=member.id,
            seq=member.exchange._seq,
            round=1,
            meta=push(),
            payload=VALUE,
            gives=Status.OK,
        )
        for _ in range(3):
            assert await sent(server_of(rig, row), row, epoch) is row.gives
        assert everything(rig) == before


async def test_a_gap_in_a_workers_numbers_is_taken_and_a_number_of_the_past_is_not() -> None:
    """Whoever gave a push up leaves a gap: it is no sign of a loss, as one in the ops is."""
    async with Rig() as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        member.exchange._seq = Seq(40)
        await member.step(BLUEPRINT.full(1.0))
        before = everything(rig)
        member.exchange._seq = Seq(3)
        member.give(BLUEPRINT.full(8.0))
        await member.exchange.push()
        assert everything(rig) == before
