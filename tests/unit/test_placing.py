"""Asking a placement in a process of its own: whatever it does, its asker hears in time."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from elasticps.api.plugins import PLACEMENTS
from elasticps.core.ids import BlockId, JobName, NodeId, ServerId
from elasticps.core.placement import Site
from elasticps.core.proposal import Load, PlacedBlock, Situation
from elasticps.daemon.placing import ask
from tests.support.distributions import Install, install
from tests.support.processes import open_fds

__all__ = ["install"]

A, B = ServerId("n1/x"), ServerId("n2/x")
SITUATION = Situation(
    job=JobName("job"),
    replicas=1,
    sites=(Site(server=A, node=NodeId("n1")), Site(server=B, node=NodeId("n2"))),
    blocks=tuple(
        PlacedBlock(
            block=BlockId(number),
            size=4096,
            primary=A,
            destined=(A,),
            load=Load(apply_s_per_s=0.2, measured_s=30.0),
        )
        for number in range(4)
    ),
    server_loads={A: Load(apply_s_per_s=0.8), B: Load()},
)


@pytest.fixture
def placement(install: Install, monkeypatch: pytest.MonkeyPatch):
    """``placement(body)``: a plugin named ``acme`` whose ``propose`` has this body."""

    def make(body: str) -> None:
        source = f"""
            import os, sys, time
            from elasticps import Placement

            class Acme(Placement):
                def propose(self, situation):
                    {body}
        """
        site = install("acme", "acme", source, {PLACEMENTS: {"acme": "acme:Acme"}})
        monkeypatch.setenv("PYTHONPATH", str(site))

    return make


async def test_the_built_in_ones_answer_from_a_process_of_their_own() -> None:
    before = open_fds()
    balanced, by_load = await ask("balanced", SITUATION), await ask("load-aware", SITUATION)
    for placed in (balanced, by_load):
        assert placed.refusal == ""
        assert list(placed.proposal.values()) == [(B,), (B,)]
    assert open_fds() == before


async def test_options_reach_the_plugin_and_wrong_ones_are_told() -> None:
    assert (await ask("load-aware:floor=9", SITUATION)).proposal == {}
    assert "has no option 'flor'" in (await ask("load-aware:flor=9", SITUATION)).refusal
    assert "band must be above 0" in (await ask("load-aware:band=0", SITUATION)).refusal


async def test_a_third_party_placement_answers_and_may_print(placement) -> None:
    placement("print('hello'); return {1: [situation.sites[1].server]}")
    assert (await ask("acme", SITUATION)).proposal == {1: (B,)}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('no idea')", "RuntimeError: no idea"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("os._exit(3)", "ended without an answer"),
        ("os.kill(os.getpid(), 9)", "ended without an answer"),
        ("return None", "AttributeError"),
        ("return {'one': [1]}", "ValidationError"),
        ("return {1: ['n9/x']}", "'n9/x' is no server"),
        ("return {1: []}", "0 replicas where 1 are wanted"),
        ("return {77: ['n1/x']}", "block 77 is not the job's"),
        ("raise RuntimeError('long ' * 10000)", "long"),
    ],
)
async def test_what_a_placement_does_wrong_is_told_in_one_line(placement, body, reason) -> None:
    placement(body)
    placed = await ask("acme", SITUATION)
    assert reason in placed.refusal
    assert len(placed.refusal) < 400
    assert "\n" not in placed.refusal
    assert placed.proposal == {}


async def test_a_placement_that_is_not_installed_is_told() -> None:
    assert "no plugin named 'balancd'" in (await ask("balancd", SITUATION)).refusal


async def test_a_placement_that_hangs_is_ended_and_the_loop_runs_on(placement, tmp_path) -> None:
    pid_file = tmp_path / "pid"
    placement(f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(3600)")
    before = open_fds()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    turning = asyncio.create_task(turn())
    placed = await ask("acme", SITUATION, limit_s=4.0)
    turning.cancel()
    assert placed.refusal == "no answer within 4 s"
    assert turns > 20
    pid = await asyncio.to_thread(pid_file.read_text)
    assert not await asyncio.to_thread(Path(f"/proc/{pid}").exists)
    assert open_fds() == before


async def test_who_asks_no_more_leaves_no_process(placement, tmp_path) -> None:
    pid_file = tmp_path / "pid"
    placement(f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(3600)")
    asking = asyncio.create_task(ask("acme", SITUATION))
    while not (pid := await asyncio.to_thread(_text_of, pid_file)):
        await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.wait({asking})
    assert not await asyncio.to_thread(os.path.exists, f"/proc/{pid}")


def _text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""
