"""Jobs whose gradients are coded: real servers decode them, in every consistency."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import torch

from elasticps.api.job_codec import load_codec
from elasticps.core.ids import BlockId, Seq
from elasticps.errors import JobFailed, PeerUnavailable, PluginError, UsageError
from elasticps.testing.members import Blueprint, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import PushMeta, RefusalMeta, decode, encode
from elasticps.worker.encoder import Encoder
from elasticps.worker.parameters import memory_of
from tests.support.bits import assert_equal, step_all
from tests.support.counted import MODES
from tests.support.distributions import Install, install
from tests.support.wire import PATIENCE_S, eventually

__all__ = ["install"]

SGD = Blueprint(options={"lr": 1.0}, zeros=True)
"""Its value is minus the sum of the mean gradients. Blocks of 1024, 476, 63 and 1 elements."""
CODECS = ["bf16", "fp16", "int8", "sign", "power-sgd", "random-k:ratio=0.1", "top-k:ratio=0.1+int8"]


class Twin:
    """What a member's servers must come to see of its gradients: an encoder of its own, decoded."""

    def __init__(self, member: Member, text: str, blueprint: Blueprint) -> None:
        codec = load_codec(text)
        assert codec is not None
        self._codec = codec
        self._encoder = Encoder(codec, member.id)
        self._parameters = blueprint.parameters()
        self._memory = memory_of(blueprint.model, self._parameters)
        self._seq = 0

    def decoded(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self._seq += 1
        into = [torch.empty_like(item) for item in gradients]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        for memory in self._memory:
            update = memory.outgoing(None)
            assert update is not None
            payload = self._encoder.payload(memory, Seq(self._seq), update)
            flat = into[memory.block.parameter].view(-1)[memory.block.start : memory.block.stop]
            flat.copy_(self._codec.decode(payload, memory.block.numel))
        self._encoder.settle(counted=True)
        return into


@pytest.mark.parametrize("text", [*CODECS, "ef+sign", "ef+top-k:ratio=0.05"])
async def test_a_run_equals_the_local_optimizer_on_the_mean_of_decoded_gradients(text: str) -> None:
    blueprint = Blueprint(options={"lr": 0.1, "momentum": 0.9})
    async with Rig(servers=3, start_workers=3, replicas=2, codec=text) as rig:
        members = await rig.workers(3, blueprint)
        twins = [Twin(member, text, blueprint) for member in members]
        local = LocalRun(blueprint)
        for number in range(4):
            gradients = [blueprint.random(10 * number + rank) for rank in range(3)]
            await step_all(members, gradients)
            local.step(
                [(twin.decoded(item), 1.0) for twin, item in zip(twins, gradients, strict=True)]
            )
        for mine, its in zip(members[0].values(), local.parameters, strict=True):
            torch.testing.assert_close(mine, its.detach(), rtol=0, atol=1e-5)
        for member in members[1:]:
            assert_equal(member, members[0])
        sent = members[0].exchange.encoder
        assert 0 < sent.pushed_bytes < sent.gradient_bytes == 4 * 4 * 1564


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
async def test_parameters_of_any_dtype_take_decoded_gradients(dtype: torch.dtype) -> None:
    blueprint = Blueprint(options={"lr": 1.0}, zeros=True, dtype=dtype)
    async with Rig(servers=2, start_workers=2, replicas=2, codec="fp16") as rig:
        members = await rig.workers(2, blueprint)
        await step_all(members, [blueprint.full(2.0), blueprint.full(-6.0)])
        for value in members[0].values():
            assert torch.equal(value, torch.full_like(value, 2.0))


# -- error feedback -----------------------------------------------------------------------------


class Conserved:
    """Workers with error feedback: what was given is in the value or in a residual."""

    def __init__(self, rig: Rig, members: Sequence[Member], weight: int) -> None:
        self.members = list(members)
        self._rig = rig
        self._weight = weight
        self._given = [item.double() for item in SGD.full(0.0)]
        self._dead: list[torch.Tensor] = []
        self._steps = 0

    async def step(self, member: Member) -> None:
        """One step; its gradient is given if the round has counted it."""
        self._steps += 1
        gradients = SGD.random(1000 * member.id + self._steps)
        counted = member.exchange._tally.count
        await member.step(gradients)
        if member.exchange._tally.count > counted:
            for total, gradient in zip(self._given, gradients, strict=True):
                total += gradient

    async def assert_kept(self) -> None:
        await together(*(member.exchange.read() for member in self.members))
        values = self.members[0].values()
        for index, (value, given) in enumerate(zip(values, self._given, strict=True)):
            residuals = torch.zeros(given.numel()).double()
            for member in self.members:
                for memory in member.exchange._memory:
                    residual = member.exchange.encoder.residual(memory.block.id)
                    if memory.block.parameter == index and residual is not None:
                        residuals[memory.block.start : memory.block.stop] += residual
            arrived = -self._weight * value.double().view(-1)
            torch.testing.assert_close(arrived + residuals, given.view(-1), rtol=1e-4, atol=1e-3)
        assert any(bool(item.any()) for item in self._given)


@pytest.mark.parametrize("mode", MODES)
async def test_what_error_feedback_holds_back_is_sent_later_and_nothing_is_lost(mode: str) -> None:
    """With a backup worker a round counts two of three, and the third one's gradient not at all."""
    job = MODES[mode]
    weight = {"sync": 3, "backup workers": 2}.get(mode, 1)
    text = "ef+top-k:ratio=0.05+int8"
    async with Rig(servers=2, start_workers=3, replicas=2, codec=text, **job) as rig:
        kept = Conserved(rig, await rig.workers(3, SGD), weight)
        for _ in range(8):
            await together(*(kept.step(member) for member in kept.members))
        await kept.assert_kept()


async def test_a_round_that_is_pushed_again_after_a_death_folds_once() -> None:
    async with Rig(servers=2, start_workers=3, replicas=2, codec="ef+sign") as rig:
        members = await rig.workers(3, SGD)
        victim, *others = members
        kept = Conserved(rig, others, weight=2)
        victim.give(SGD.random(99))
        steps = [member.start(kept.step(member)) for member in others]
        await victim.exchange.push()
        before = [member.exchange.encoder.pushed_bytes for member in others]
        await eventually(lambda: len(rig.ledger.votes) == 2)
        await rig.kill(victim)
        for step in steps:
            await step
        for member, pushed in zip(others, before, strict=True):
            assert member.exchange.encoder.pushed_bytes == 2 * pushed
        for _ in range(3):
            await together(*(kept.step(member) for member in others))
        await kept.assert_kept()


async def test_residuals_stay_at_the_worker_while_its_blocks_move_and_fail_over() -> None:
    async with Rig(servers=2, start_workers=2, replicas=2, codec="ef+top-k:ratio=0.05") as rig:
        kept = Conserved(rig, await rig.workers(2, SGD), weight=2)

        async def rounds() -> None:
            for _ in range(3):
                await together(*(kept.step(member) for member in kept.members))

        await rounds()
        third = await rig.start_server()
        await together(rounds(), rig.move_all(third, next(iter(rig.servers))))
        await rounds()
        await rig.kill_server(third)
        await rounds()
        await kept.assert_kept()


# -- what a server must not take ----------------------------------------------------------------

BLOCK = BlockId(2)


def push_header(rig: Rig, member: Member) -> Header:
    turn = member.exchange.member_turn
    return Header(
        Kind.PUSH,
        job=JOB,
        plan_epoch=rig.entries[BLOCK].epoch,
        block=BLOCK,
        worker=member.id,
        seq=Seq(1),
        round=turn.round,
    )


def push_meta(member: Member, codec: str) -> bytes:
    turn = member.exchange.member_turn
    return encode(PushMeta(turn.generation, 1.0, {}, turn.pushers, None, 0, codec))


BAD: dict[str, tuple[str, bytes, str]] = {
    "too short": ("top-k:ratio=0.1", bytes(40), "field payload_length"),
    "places twice": ("top-k:ratio=0.1", bytes(2 * 47 + 2 + 4 * 47), "field places"),
    "another codec": ("int8", bytes(40), r"field codec\) \(limit: top-k:ratio=0.1"),
    "no codec": ("none", bytes(40), "field codec"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", BAD)
async def test_payload_that_does_not_decode_is_refused_and_disturbs_nothing(
    bad: str, mode: str
) -> None:
    codec, payload, reason = BAD[bad]
    async with Rig(servers=2, start_workers=3, codec="top-k:ratio=0.1", **MODES[mode]) as rig:
        members = await rig.workers(3, SGD)
        one, server = members[0], rig.primary(BLOCK)
        async with server.spoken_to(one.id) as conn:
            for _ in range(2):
                header, meta = push_header(rig, one), push_meta(one, codec)
                reply = await conn.request(header, meta, memoryview(payload), timeout_s=PATIENCE_S)
                assert reply.header.status is Status.REFUSED
                assert re.search(reason, decode(reply.meta, RefusalMeta).reason)
            assert not conn.closed
        assert not server.parameter_block(BLOCK).pushes
        for number in range(2):
            await together(*(member.step(SGD.random(number)) for member in members))
        assert server.errors == []


async def test_payload_that_no_push_can_have_is_not_received() -> None:
    async with Rig(codec="int8") as rig:
        (one,) = await rig.workers(1, SGD)
        server = rig.primary(BLOCK)
        most = 476 + 4 * 2
        async with server.spoken_to(one.id) as conn:
            payload = memoryview(bytes(most + 1))
            with pytest.raises(PeerUnavailable):
                await conn.request(
                    push_header(rig, one), push_meta(one, "int8"), payload, timeout_s=PATIENCE_S
                )
        (error,) = server.errors
        assert (error.field, error.limit) == ("payload_length", f"at most {most}")
        server.forget_closed()
        await one.step(SGD.random(1))


# -- codecs that are broken ---------------------------------------------------------------------

PLUGIN = """
    from elasticps import Codec

    class Broken(Codec):
        def __init__(self, where):
            self.where = where
            if where == "made":
                raise RuntimeError("not here")

        def max_nbytes(self, numel):
            return 1 // (self.where != "max_nbytes") * numel * 4

        def encode(self, gradient, seed):
            return gradient.numpy().tobytes()[: 4 * (self.where != "encode")]

        def decode(self, payload, numel):
            raise ZeroDivisionError("no decoder")
"""


@pytest.fixture
def broken(install: Install) -> None:
    install(
        "broken-codec", "broken_codec", PLUGIN, {"elasticps.codecs": {"x": "broken_codec:Broken"}}
    )


@pytest.mark.usefixtures("broken")
async def test_codec_that_cannot_decode_fails_its_job_with_the_reason() -> None:
    async with Rig(servers=2, start_workers=2, codec="x:where=decode") as rig:
        members = await rig.workers(2, SGD)
        steps = [member.start(member.step(SGD.random(1))) for member in members]
        for step in steps:
            with pytest.raises(JobFailed, match=r"ZeroDivisionError: no decoder \(field payload\)"):
                await step


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x:where=made", "RuntimeError: not here"),
        ("x:where=max_nbytes", "ZeroDivisionError"),
        ("y", "no plugin named 'y'"),
        ("int8+int8", "int8 keeps every number"),
    ],
)
async def test_codec_that_a_server_cannot_have_fails_its_job_with_the_reason(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elasticps.worker.standing.load_codec", lambda _: None)
    async with Rig(servers=2, codec=text) as rig:
        with pytest.raises(JobFailed, match=reason):
            await rig.worker(SGD).join()


@pytest.mark.usefixtures("broken")
async def test_codec_that_a_worker_cannot_have_or_use_is_told_there() -> None:
    async with Rig(codec="y") as rig:
        with pytest.raises(PluginError, match="no plugin named 'y'"):
            rig.worker(SGD)
    async with Rig(codec="int8+int8") as rig:
        with pytest.raises(UsageError, match="int8 keeps every number"):
            rig.worker(SGD)
    async with Rig(codec="x:where=encode") as rig:
        (one,) = await rig.workers(1, SGD)
        with pytest.raises(PluginError, match="codec x:where=encode: coded 1024 numbers in 0 by"):
            await one.step(SGD.random(1))


async def test_job_beside_one_with_a_broken_codec_trains_on(install: Install) -> None:
    other: dict[str, Any] = {"codec": "nowhere", "job": 77}
    async with Rig(servers=2) as rig:
        (one,) = await rig.workers(1, SGD)
        for server in rig.servers.values():
            server.child.tell(msgspec.structs.replace(rig._job_message(), **other))
            await eventually(lambda server=server: server.server.table.broken(77))
        await one.step(SGD.random(1))
