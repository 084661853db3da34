"""Whose a place of checkpoints is: one job's at a time, and the same on every machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import elasticps
from elasticps.checkpoint import remote_ownership
from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.ownership import OWNER, Owner
from elasticps.checkpoint.snapshot import read, write
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import place_of
from elasticps.server import saving
from tests.support.checkpoint_rig import (
    BATCH,
    OPTIMIZERS,
    CheckpointRig,
    SlowDisk,
    Training,
    refused,
    rounds_in,
)
from tests.support.checkpoints import snapshot
from tests.support.processes import wait_until
from tests.support.scripts import as_worker, backward, dataset, network
from tests.support.wire import PATIENCE_S


async def test_two_jobs_at_once_do_not_share_a_directory(tmp_path: Path) -> None:
    began, tried = threading.Event(), threading.Event()

    def first(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "sgd", **OPTIMIZERS["sgd"])
        for batch in run.data(dataset(), batch_size=BATCH, epochs=3, seed=4):
            if run.round == 3:
                began.set()
                assert tried.wait(PATIENCE_S)
            backward(model, batch)
            optimizer.step()
            if run.round == 8:
                break
        return run.round

    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 2}
    async with CheckpointRig(identity="1", **wishes) as rig:
        training = asyncio.create_task(as_worker(rig, first))
        await asyncio.to_thread(began.wait, PATIENCE_S)
        error = await refused(identity="2", **wishes)
        resuming = await refused(identity="3", resume=str(tmp_path), **wishes)
        tried.set()
        assert await training == 8
        report = rig.progress["w1"].checkpoint
    for each in (error, resuming):
        assert (each.field, each.limit) == ("checkpoint_dir", "one job at a time")
    assert report is not None
    assert (report.round, report.error) == (8, "")
    assert {read(path).owner for _, path in complete(tmp_path)} == {"1"}
    async with CheckpointRig(identity="4", resume=str(tmp_path), **wishes) as rig:
        assert (await as_worker(rig, Training(stop_at=11))).began_at == 8
    assert rounds_in(tmp_path) == [10, 8, 6]


async def test_another_jobs_checkpoint_of_the_same_round_is_not_taken_for_ones_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 4}

    def script(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            if run.round == 3:
                write(tmp_path, other, version="0.0.test")
            backward(model, batch)
            optimizer.step()
        return run.round

    other = replace(snapshot(4), owner="2", job="another")
    async with CheckpointRig(identity="1", **wishes) as rig:
        assert await as_worker(rig, script) == 8
    assert "one of another job, another" in caplog.text
    assert [read(path).owner for _, path in complete(tmp_path)] == ["1", "2"]


@pytest.fixture(params=["directory", "URL"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Where checkpoints can be."""
    monkeypatch.setattr(remote_ownership, "SETTLE_S", 0.05)
    root = str(tmp_path) if request.param == "directory" else f"memory:/{tmp_path}"
    yield root
    STORAGE.remove_tree(place_of(root), ignore_errors=True)


async def test_a_job_makes_none_where_another_has_later_ones(place: str) -> None:
    root = place_of(place)

    def script(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            if run.round == 5:
                wait_until(lambda: rounds_in(root) == [4])
                write(root, replace(snapshot(9), owner="2", job="another"), version="0.0.test")
            backward(model, batch)
            optimizer.step()
        return run.round

    wishes: dict[str, Any] = {"checkpoint_dir": place, "checkpoint_every": 2}
    async with CheckpointRig(identity="1", checkpoint_keep=1, **wishes) as rig:
        assert await as_worker(rig, script) == 8
        report = rig.progress["w1"].checkpoint
    assert report is not None
    assert "a checkpoint of round 9 of job another, and this job is at 8" in report.error
    assert "field checkpoint_dir" in report.error
    assert rounds_in(root) == [9, 4]
    assert [read(path).owner for _, path in complete(root)] == ["2", "1"]


async def test_a_job_that_loses_its_place_while_it_writes_leaves_it_alone(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, root = SlowDisk(monkeypatch), place_of(place)
    theirs = msgspec.json.encode(Owner("2", "another"))

    def script(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            if run.round == 5:
                wait_until(lambda: disk.waiting)
                STORAGE.remove_tree(root / OWNER)
                STORAGE.create(root / OWNER, [theirs])
                disk.go_on.set()
            backward(model, batch)
            optimizer.step()
        return run.round

    wishes: dict[str, Any] = {"checkpoint_dir": place, "checkpoint_every": 5}
    async with CheckpointRig(identity="1", **wishes) as rig:
        assert await as_worker(rig, script) == 8
        report = rig.progress["w1"].checkpoint
    assert report is not None
    assert "job another has its checkpoints here" in report.error
    assert rounds_in(root) == []
    with STORAGE.open(root / OWNER) as file:
        assert file.read() == theirs


async def test_a_directory_that_another_machine_has_not_is_named_at_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_block, elsewhere = saving.write_block, tmp_path / "elsewhere"

    def not_shared(directory: Path, *block: Any) -> Any:
        return write_block(elsewhere / directory.name, *block)

    monkeypatch.setattr(saving, "write_block", not_shared)
    root = tmp_path / "saved"
    async with CheckpointRig(checkpoint_dir=str(root), checkpoint_every=3) as rig:
        await as_worker(rig, Training(stop_at=4))
        report = rig.progress["w1"].checkpoint
        attempts = rig.progress["w1"].checkpoint_attempts
    assert report is not None
    assert f"{root} is to be the same directory on every machine" in report.error
    assert (attempts.made, attempts.failed) == (0, 1)
    assert rounds_in(root) == []
