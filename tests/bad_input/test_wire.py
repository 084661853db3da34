"""Bad input by the wire: that connection closes or that request is refused, and nothing else."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from elasticps.core.ids import JobKey, WorkerId
from elasticps.daemon.links import Links
from elasticps.errors import ElasticError, WireError
from elasticps.server.main import _note as note_of_server
from elasticps.testing.members import Member
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.frame import FLAG_EMPTY, HEADER_SIZE, Header, Kind, Status, pack
from elasticps.wire.listener import OnError, listen
from elasticps.wire.messages import HelloMeta, PullMeta, encode
from tests.bad_input.frames import (
    BLOCK,
    BLUEPRINT,
    BYSTANDER,
    DEEP,
    ELEMENTS,
    OP,
    VALUE,
    Row,
    everything,
    first_value,
    push,
    sent,
    server_of,
    with_option,
)
from tests.support.checkers import digest
from tests.support.wire import PATIENCE_S, Echo, eventually, raw_stream

pytestmark = [pytest.mark.bad_input, pytest.mark.asyncio(loop_scope="module")]

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


def pull(rig: Rig) -> tuple[Header, bytes]:
    epoch = rig.entries[BLOCK].epoch
    header = Header(Kind.PULL, job=JOB, plan_epoch=epoch, block=BLOCK, worker=BYSTANDER)
    return header, encode(PullMeta())


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
