"""A plugin that is broken hurts the job that chose it, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from elasticps.api.plugins import OPTIMIZERS
from tests.integration.cluster.acts import started
from tests.support.distributions import Install, install

__all__ = ["install"]

pytestmark = pytest.mark.asyncio(loop_scope="package")

SOURCE = """
    import os, torch
    from elasticps import TorchOptimizer

    class Exits(torch.optim.SGD):
        def step(self, closure=None):
            os._exit(3)

    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            raise OverflowError("no such number")

    exits, raises = TorchOptimizer(Exits), TorchOptimizer(Raises)
"""
ENTRIES = {name: f"acme_odd:{name}" for name in ("exits", "raises")}


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_optimizer_that_would_end_the_shard_servers_ends_its_job_alone(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install("acme-odd", "acme_odd", SOURCE, {OPTIMIZERS: ENTRIES})
    monkeypatch.setenv("PYTHONPATH", str(site))
    async with started(2, tmp_path) as cluster:
        good = await cluster.train(start_workers=2, audit=True)
        await good.is_trained_by("n1", "n2")
        servers = [await cluster.shard_server_pid(node) for node in ("n1", "n2")]
        for name, reason in (
            ("exits", "its process exited with code 3"),
            ("raises", "OverflowError: no such number"),
        ):
            bad = await cluster.train("--optimizer", name, max_workers=1)
            ended = await bad.ended()
            assert ended.state == "FAILED"
            assert reason in ended.reason
            assert f"plugin {name} of acme-odd 1.0 (acme_odd:{name})" in ended.reason
            await good.goes_on()
        assert servers == [await cluster.shard_server_pid(node) for node in ("n1", "n2")]
        ended = await good.finish()
        assert ended.state == "SUCCEEDED"
        assert (ended.verdict.lost, ended.verdict.duplicated) == (0, 0)
