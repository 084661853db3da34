"""A plugin is tried in another process before a shard server, which others share, runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from elasticps.api.plugins import DATA_POLICIES, OPTIMIZERS
from elasticps.core.blocks import Model, Parameter, check_model
from elasticps.core.ids import JobKey
from elasticps.core.rehearsal import in_small
from elasticps.daemon.plugin_check import (
    Trial,
    codec_trial,
    data_policy_trial,
    optimizer_trial,
    rehearse,
)
from elasticps.daemon.rehearsals import Rehearsals
from tests.support.distributions import Install, install

__all__ = ["install"]

SOURCE = """
    import os, time, torch
    from elasticps import TorchOptimizer

    class Odd(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            BODY

    plugin = TorchOptimizer(Odd)
"""
GROUP = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
OTHERS = {"maximize": False, "foreach": None, "differentiable": False, "fused": None}


def model(optimizer: str, *, elementwise: bool = True) -> Model:
    parameters = (
        Parameter(name="a", shape=(1000, 30), dtype="float32"),
        Parameter(name="b", shape=(700, 30), dtype="float32"),
        Parameter(name="c", shape=(3,), dtype="bfloat16"),
        Parameter(name="d", shape=(), dtype="float32"),
    )
    return Model(
        parameters=parameters,
        optimizer=optimizer,
        options={"lr": 0.1, "momentum": 0.9},
        groups=({**GROUP, **OTHERS},),
        elementwise=elementwise,
    )


@pytest.mark.parametrize("elementwise", [True, False])
def test_model_in_small_has_one_parameter_of_each_kind(*, elementwise: bool) -> None:
    small = in_small(model("sgd", elementwise=elementwise))
    check_model(small)
    kinds = {(row.dtype, row.shape) for row in small.parameters}
    assert len(kinds) == len(small.parameters)
    flat = {("float32", (67,)), ("bfloat16", (3,)), ("float32", ())}
    assert kinds == (flat if elementwise else {("float32", (5, 5)), *flat} - {("float32", (67,))})


@pytest.mark.parametrize("name", ["sgd", pytest.param("lion", marks=pytest.mark.long)])
async def test_optimizer_that_steps_passes(name: str) -> None:
    chosen = model(name)
    if name == "lion":
        groups = ({"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False},)
        chosen = Model(parameters=chosen.parameters, optimizer=name, options={}, groups=groups)
    assert (await rehearse(optimizer_trial(chosen))).reason == ""


def broken(install: Install, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    source = SOURCE.replace("BODY", body)
    site = install("acme-odd", "acme_odd", source, {OPTIMIZERS: {"odd": "acme_odd:plugin"}})
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os._exit(0)", "its process exited with code 0"),
        # One that hangs is among what tests/bad_input refuses.
        pytest.param("time.sleep(1e6)", "did not end within 3 s", marks=pytest.mark.long),
        pytest.param(
            "p = self.param_groups[0]['params'][0]; p.data = p.data.double()",
            "step() gave it another shape or dtype: ",
            marks=pytest.mark.long,
        ),
        pytest.param("raise KeyError('x')", "step() failed", marks=pytest.mark.long),
        (
            "self.state[self.param_groups[0]['params'][0]]['f'] = open",
            ": a trial copy of its value and state, as each replica has one: Odd: its state f",
        ),
    ],
    ids=["exits", "hangs", "dtype", "raises", "state"],
)
async def test_optimizer_that_would_harm_a_server_is_refused_with_its_name(
    install: Install, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    broken(install, monkeypatch, body)
    said = (await rehearse(optimizer_trial(model("odd")), limit_s=3)).reason
    assert reason in said
    assert "plugin odd of acme-odd 1.0 (acme_odd:plugin)" in said


CODEC = """
    import os, time, torch
    from elasticps.api.codec import Codec, tensor_from

    class Odd(Codec):
        def max_nbytes(self, numel):
            return 4 * numel

        def encode(self, gradient, seed):
            return gradient.numpy().tobytes()

        def decode(self, payload, numel):
            BODY
"""
POLICY = """
    import os, time
    from elasticps.api.data_policy import DataPolicy

    class Odd(DataPolicy):
        def lend(self, asked):
            BODY
"""


@pytest.mark.parametrize(
    ("source", "trial"),
    [
        pytest.param(CODEC, codec_trial("ef+odd"), id="codec"),
        pytest.param(POLICY, data_policy_trial("odd"), id="data policy", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param("os._exit(0)", "its process exited with code 0", marks=pytest.mark.long),
        ("time.sleep(1e6)", "did not end within 3 s"),
        pytest.param("raise KeyError('x')", "KeyError", marks=pytest.mark.long),
    ],
    ids=["exits", "hangs", "raises"],
)
async def test_codec_or_policy_that_would_harm_a_server_is_refused_with_its_name(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    trial: Trial,
    body: str,
    reason: str,
) -> None:
    made = source.replace("BODY", body)
    site = install("acme-odd", "acme_odd", made, {trial.group: {"odd": "acme_odd:Odd"}})
    monkeypatch.setenv("PYTHONPATH", str(site))
    said = (await rehearse(trial, limit_s=3)).reason
    assert reason in said
    assert "plugin odd of acme-odd 1.0 (acme_odd:Odd)" in said


async def test_a_policy_that_hangs_is_refused_in_a_moment_for_nothing_slow_is_loaded_for_it(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded = "import sys; assert 'torch' not in sys.modules; time.sleep(1e6)"
    made = POLICY.replace("BODY", unloaded)
    site = install("acme-odd", "acme_odd", made, {DATA_POLICIES: {"odd": "acme_odd:Odd"}})
    monkeypatch.setenv("PYTHONPATH", str(site))
    said = (await rehearse(data_policy_trial("odd"), limit_s=0.5)).reason
    assert said.startswith("plugin odd of acme-odd 1.0 (acme_odd:Odd): ")
    assert said.endswith(": did not end within 0.5 s")


async def test_codecs_and_policies_that_work_pass() -> None:
    for trial in (codec_trial("ef+top-k:ratio=0.1+int8"), data_policy_trial("static")):
        assert (await rehearse(trial)).reason == ""


async def test_verdict_is_told_when_it_is_known_and_a_job_that_comes_again_is_tried_again(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(install, monkeypatch, "raise KeyError('x')")
    told = asyncio.Event()
    rehearsals = Rehearsals(told.set)
    assert rehearsals.verdict(JobKey(1), model("sgd")) == ""
    assert rehearsals.verdict(JobKey(2), model("odd")) is None
    life = asyncio.create_task(rehearsals.run())
    await asyncio.wait_for(told.wait(), 60)
    assert "KeyError" in (rehearsals.verdict(JobKey(2), model("odd")) or "")
    assert rehearsals.verdict(JobKey(4), model("sgd"), "ef+dct") is None  # not of ours
    rehearsals.keep_only({JobKey(1)})
    assert rehearsals.verdict(JobKey(3), model("odd")) is None
    life.cancel()
    await asyncio.wait({life})
