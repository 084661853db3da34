"""A job's checkpoints: cuts between two rounds, written beside a training that goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import elasticps
from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.manifest import CutKind, read_manifest
from elasticps.checkpoint.snapshot import read
from elasticps.core.consistency import Consistency
from elasticps.errors import BlockUnavailable, JobFailed
from elasticps.server import saving
from elasticps.worker.checkpoints import Checkpoints
from tests.support.checkpoint_rig import BATCH, CheckpointRig, SlowDisk, Training, rounds_in
from tests.support.processes import wait_until
from tests.support.scripts import as_worker, as_workers, backward, dataset, network
from tests.support.wire import PATIENCE_S


async def test_as_many_stay_as_are_wanted(tmp_path: Path) -> None:
    wishes = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 2, "checkpoint_keep": 1}
    async with CheckpointRig(**wishes) as rig:
        await as_worker(rig, Training(stop_at=5))
    assert rounds_in(tmp_path) == [4]


async def test_a_user_gets_one_checkpoint_for_asking_once(tmp_path: Path) -> None:
    asked, seen = threading.Event(), threading.Event()

    def script(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        for number, batch in enumerate(run.data(dataset(), batch_size=BATCH, epochs=1)):
            if number == 2:
                asked.set()
                seen.wait(PATIENCE_S)
                wait_until(lambda: run._job.checkpoint_request == 42)
            backward(model, batch)
            optimizer.step()
        return run.round

    async with CheckpointRig(checkpoint_dir=str(tmp_path)) as rig:
        running = asyncio.create_task(as_worker(rig, script))
        await asyncio.to_thread(asked.wait, PATIENCE_S)
        rig.ask(42)
        seen.set()
        assert await running == 8
        report = rig.progress["w1"].checkpoint
    assert rounds_in(tmp_path) == [3]
    assert report is not None
    assert (report.round, report.request, report.error) == (3, 42, "")
    assert report.directory == str(tmp_path / "round-00000003")


async def test_training_goes_on_where_no_checkpoint_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"

    def script(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            if run.round == 3:
                run._membership.checkpoints.finish()
                for path in root.iterdir():
                    path.rename(tmp_path / path.name)
                root.rmdir()
                root.write_text("in the way")
            backward(model, batch)
            optimizer.step()
        return run.round

    async with CheckpointRig(checkpoint_dir=str(root), checkpoint_every=2) as rig:
        assert await as_worker(rig, script) == 8
        report = rig.progress["w1"].checkpoint
        attempts = rig.progress["w1"].checkpoint_attempts
    assert str(attempts).startswith(f"3 of 4 checkpoints failed: {root}: ")
    assert report is not None
    assert "Not a directory" in report.error
    assert report.round == 2
    assert "no checkpoint" in caplog.text


async def test_the_next_main_worker_goes_on_with_the_checkpoints(tmp_path: Path) -> None:
    both = threading.Event()

    def script(uid: str, run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=4):
            if run.round == 4 and uid == "w1":
                both.set()
                wait_until(lambda: run._agent.retiring)
            backward(model, batch)
            optimizer.step()

    wishes: dict[str, Any] = {
        "checkpoint_dir": str(tmp_path),
        "checkpoint_every": 4,
        "start_workers": 2,
    }
    async with CheckpointRig(**wishes) as rig:
        lives = [
            asyncio.create_task(as_worker(rig, partial(script, uid), uid)) for uid in ("w1", "w2")
        ]
        await asyncio.to_thread(both.wait, PATIENCE_S)
        rig.retire("w1")
        assert isinstance(await lives[0], elasticps.WorkerRetired)
        await lives[1]
        report = rig.progress["w2"].checkpoint
    assert report is not None
    assert rounds_in(tmp_path) == [32, 28, 24]


async def test_a_main_worker_declared_dead_writes_no_cut_through_two_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Checkpoints.make
    loop = asyncio.get_running_loop()
    evicted = threading.Event()

    def make_late(self: Checkpoints, *rest: Any) -> None:
        if not evicted.is_set():
            evicted.set()
            main = rig.ledger.members[0]
            loop.call_soon_threadsafe(rig.evict, main)
            wait_until(lambda: rig.ledger.round > 4)
        make(self, *rest)

    def script(run: elasticps.Run) -> Any:
        try:
            return Training(name="sgd", stop_at=9)(run)
        except (BlockUnavailable, JobFailed) as error:
            return error

    monkeypatch.setattr(Checkpoints, "make", make_late)
    wishes: dict[str, Any] = {
        "checkpoint_dir": str(tmp_path),
        "checkpoint_every": 4,
        "start_workers": 2,
    }
    async with CheckpointRig(**wishes) as rig:
        endings = await as_workers(rig, 2, script)
    assert sum(isinstance(ending, Training) for ending in endings) == 1
    assert rounds_in(tmp_path) == [8]
    assert read(tmp_path / "round-00000008").round == 8


# -- written beside the training ----------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 5])
async def test_what_is_written_is_of_its_round_however_far_the_training_is(
    streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    monkeypatch.setattr(saving, "STREAMS", streams)
    cut: dict[str, torch.Tensor] = {}
    blocks = 5

    def script(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            if run.round == 4:
                cut.update({key: item.clone() for key, item in model.state_dict().items()})
                assert rounds_in(tmp_path) == []
                wait_until(lambda: disk.waiting == streams)
                if streams < blocks:  # what would carry a block further waits
                    threading.Timer(0.05, disk.go_on.set).start()
            elif run.round == 7:
                assert streams < blocks or rounds_in(tmp_path) == []
                disk.go_on.set()
            backward(model, batch)
            optimizer.step()
        return run.round

    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 4}
    async with CheckpointRig(servers=1, **wishes) as rig:
        assert await as_worker(rig, script) == 8
    found = read(tmp_path / "round-00000004")
    assert len(read_manifest(tmp_path / "round-00000004").blocks) == blocks
    assert all(torch.equal(found.values[key], item) for key, item in cut.items())
    assert all(int(torch.as_tensor(state["step"])) == 4 for state in found.state.values())


async def test_a_part_of_the_model_that_did_not_train_is_written_once(tmp_path: Path) -> None:
    def script(run: elasticps.Run) -> dict[str, torch.Tensor]:
        model = network()
        still = model[0]
        optimizer = run.optimizer(model, "adam", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            optimizer.zero_grad()
            backward(model, batch)
            for parameter in still.parameters():
                parameter.grad = None
            optimizer.step()
        return {key: item.clone() for key, item in model.state_dict().items()}

    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 2}
    async with CheckpointRig(**wishes, checkpoint_keep=2) as rig:
        trained = await as_worker(rig, script)
    assert rounds_in(tmp_path) == [8, 6]
    for row in read_manifest(tmp_path / "round-00000008").blocks:
        links = (tmp_path / "round-00000008" / row.file.name).stat().st_nlink
        assert links == (2 if row.parameter.startswith("0.") else 1), row.parameter
    found = read(tmp_path / "round-00000008")
    assert all(torch.equal(found.values[key], item) for key, item in trained.items())


async def test_a_block_that_cannot_be_written_costs_the_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 4}
    async with CheckpointRig(**wishes) as rig:
        await as_worker(rig, Training(stop_at=5))
        monkeypatch.setattr(saving, "write_block", full)
        wishes["checkpoint_every"] = 2
    async with CheckpointRig(resume=str(tmp_path), **wishes) as rig:
        assert (await as_worker(rig, Training(stop_at=7))).began_at == 4
        report = rig.progress["w1"].checkpoint
    assert report is not None
    assert "No space left on device" in report.error
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["round-00000004"]


async def test_a_user_who_asks_between_publications_is_told_what_is_waited_for(
    tmp_path: Path,
) -> None:
    rig = CheckpointRig(checkpoint_dir=str(tmp_path), strategy="gossip:publish_every=4")
    loop = asyncio.get_running_loop()
    told: list[str] = []

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            if run.round == 1:
                loop.call_soon_threadsafe(rig.ask, 42)
                wait_until(lambda: run._job.checkpoint_request == 42)
            backward(model, batch)
            optimizer.step()
            report = run._training.membership.checkpoints.report
            told.append("" if report is None else report.waits_for)

    async with rig:
        await as_worker(rig, script)
        report = rig.progress["w1"].checkpoint
    assert rounds_in(tmp_path) == [4]
    waiting = "the next round that strategy gossip:publish_every=4 gives to the shards"
    assert told[:3] == ["", waiting, waiting]
    assert report is not None
    assert (report.round, report.request, report.waits_for) == (4, 42, "")


async def test_a_checkpoint_waits_for_the_next_round_that_the_shards_are_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wishes: dict[str, Any] = {"strategy": "gossip:publish_every=7", "checkpoint_every": 5}
    async with CheckpointRig(checkpoint_dir=str(tmp_path), **wishes) as rig:
        await as_worker(rig, Training(name="adam"))
    assert rounds_in(tmp_path) == [21, 14, 7]
    assert caplog.text.count("the checkpoint of round 5 waits") == 1


# -- workers that are not in step ---------------------------------------------------------------


@pytest.mark.parametrize(
    "wishes",
    [
        {"consistency": Consistency.BOUNDED, "staleness": 2},
        {"consistency": Consistency.ASYNC},
        {"backup_workers": 1},
    ],
)
async def test_a_checkpoint_of_workers_not_in_step_is_whole_by_block_and_says_so(
    wishes: dict[str, Any], tmp_path: Path
) -> None:
    asked = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 6, "start_workers": 2}
    async with CheckpointRig(servers=2, **asked, **wishes) as rig:
        first = await as_workers(rig, 2, lambda run: Training(name="adam", stop_at=7)(run))
    number, place = complete(tmp_path)[0]
    manifest = read_manifest(place)
    assert manifest.cut is CutKind.BLOCK
    assert {row.parameter for row in manifest.blocks} == set(network().state_dict())
    async with CheckpointRig(resume=str(tmp_path), start_workers=2, **wishes) as rig:
        rest = await as_workers(rig, 2, lambda run: Training(name="adam")(run))
    assert min(one.began_at for one in rest) <= number
    used = torch.cat([batch for one in (*first, *rest) for batch in one.batches])
    every, counts = torch.unique(used, dim=0, return_counts=True)
    assert len(every) == 60
    assert min(counts.tolist()) >= 3
