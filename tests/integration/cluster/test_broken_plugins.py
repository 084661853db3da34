"""A plugin that is broken hurts the job that chose it, and no other."""

from __future__ import annotations

import re
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


LATE = """
    import os, time, torch
    from elasticps import TorchOptimizer

    class Late(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            type(self).steps += 1
            if self.steps > 200:  # a rehearsal has fewer
                self.fail()
            return super().step(closure)

    class Exits(Late):
        def fail(self):
            os._exit(3)

    class Raises(Late):
        def fail(self):
            raise OverflowError("no such number")

    class Hangs(Late):
        def fail(self):
            time.sleep(1000)

    exits, raises, hangs = TorchOptimizer(Exits), TorchOptimizer(Raises), TorchOptimizer(Hangs)
"""


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", r"optimizer raises on parameter \S+, block \d+: step\(\) failed: OverflowError"),
        (
            "exits",
            r"died in step\(\) of optimizer exits on parameter \S+, block \d+ of job train-1,",
        ),
        ("hangs", r"died in step\(\) of optimizer hangs on .* which had not returned for 20 s,"),
    ],
)
async def test_optimizer_that_fails_after_its_rehearsal_is_named_with_its_parameter(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    entries = {each: f"acme_late:{each}" for each in ("exits", "raises", "hangs")}
    site = install("acme-late", "acme_late", LATE, {OPTIMIZERS: entries})
    monkeypatch.setenv("PYTHONPATH", str(site))
    async with started(2, tmp_path) as cluster:
        job = await cluster.train("--optimizer", name, max_workers=2)
        ended = await job.ended()
        assert ended.state == "FAILED"
        assert re.search(told, ended.reason), ended.reason
