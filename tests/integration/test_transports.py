"""A worker's way to its machine's shard server: a Unix socket, or TCP where nothing else may be."""

from __future__ import annotations

import pytest
import torch

import elasticps
from elasticps.errors import UsageError
from elasticps.testing.rig import Rig
from elasticps.wire.transports import ALL, TRANSPORTS_VARIABLE, allowed_transports
from tests.support.scripts import as_worker, backward, dataset, network


def one_step(run: elasticps.Run) -> bool:
    model = network()
    optimizer = run.optimizer(model, "sgd", lr=0.1)
    backward(model, dataset()[:8])
    optimizer.step()
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())


def received(rig: Rig) -> dict[str, int]:
    (server,) = rig.servers.values()
    return {name: each.received for name, each in server.server.peers.traffic.by_transport.items()}


async def test_a_worker_that_may_use_tcp_alone_sends_nothing_over_the_unix_socket(
    monkeypatch,
) -> None:
    async with Rig(1) as rig:
        given = rig.environment("w1")
        monkeypatch.setattr(rig, "environment", lambda _: {**given, TRANSPORTS_VARIABLE: "tcp"})
        assert await as_worker(rig, one_step)
        counts = received(rig)
    assert counts["tcp"] > 4 * 300
    assert counts["unix"] == 0


async def test_a_worker_uses_its_machines_memory() -> None:
    async with Rig(1) as rig:
        assert await as_worker(rig, one_step)
        counts = received(rig)
    assert counts["shm"] >= 4 * 300
    assert counts["tcp"] == 0


async def test_a_worker_that_shares_no_memory_uses_the_unix_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Rig(1) as rig:
        given = rig.environment("w1")
        monkeypatch.setattr(
            rig, "environment", lambda _: {**given, TRANSPORTS_VARIABLE: "unix,tcp"}
        )
        assert await as_worker(rig, one_step)
        counts = received(rig)
    assert counts["unix"] > 4 * 300
    assert (counts["shm"], counts["tcp"]) == (0, 0)


def test_transports_are_read_by_name() -> None:
    assert allowed_transports("") == ALL
    assert allowed_transports(" tcp, unix") == {"tcp", "unix"}


@pytest.mark.parametrize("text", ["unix", "tcp,rdma"])
def test_transports_that_cannot_be_are_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=TRANSPORTS_VARIABLE) as refused:
        allowed_transports(text)
    assert refused.value.field == TRANSPORTS_VARIABLE
