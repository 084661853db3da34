"""A job's checkpoints: a cut between two rounds, and training that goes on as if never stopped."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.checkpoint import remote_ownership
from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.manifest import CutKind, read_manifest
from elasticps.checkpoint.ownership import OWNER, Owner
from elasticps.checkpoint.snapshot import read, write
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import place_of
from elasticps.checkpoint.weights_file import import_weights
from elasticps.core.consistency import Consistency
from elasticps.core.ids import WorkerId
from elasticps.errors import BlockUnavailable, CheckpointError, JobFailed
from elasticps.server import saving
from elasticps.server.pace import Pace
from elasticps.testing.rig import Rig
from elasticps.wire.control_messages import JobInfo, Welcome
from elasticps.worker.checkpoints import Checkpoints
from tests.support.cases import short_are
from tests.support.checkpoints import snapshot
from tests.support.processes import wait_until
from tests.support.scripts import (
    as_worker,
    as_workers,
    assert_equal,
    backward,
    dataset,
    network,
    train,
)
from tests.support.scripts import batches as local_batches
from tests.support.wire import PATIENCE_S

BATCH = 8
LOCAL: dict[str, Any] = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9},
    "adam": {"lr": 0.01, "amsgrad": True},
    "adafactor": {"lr": 0.01},
    "ftrl": {"lr": 0.01, "l1": 0.001},
    "nadam": {"lr": 0.01},
}


class CheckpointRig(Rig):
    """A rig whose job has the given wishes, ``ask`` being a user's for a checkpoint now."""

    def __init__(self, servers: int = 2, *, block_bytes: int = 4096, **wishes: Any) -> None:
        super().__init__(servers, start_workers=wishes.pop("start_workers", 1), audit=True)
        self._block_bytes = block_bytes
        self._wishes = wishes

    def ask(self, request: int) -> None:
        self._wishes["checkpoint_request"] = request
        self._tell_all(self._job_message())

    def _job_message(self) -> JobInfo:
        return msgspec.structs.replace(super()._job_message(), **self._wishes)

    def _welcome(self, worker: WorkerId) -> Welcome:
        return msgspec.structs.replace(super()._welcome(worker), block_bytes=self._block_bytes)


@dataclass(kw_only=True)
class Training:
    """What one worker has seen: its batches, and model and optimizer state at the end."""

    name: str = "sgd"
    stop_at: int = 0
    epochs: int = 3
    seed: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    batches: list[torch.Tensor] = field(default_factory=list)
    model: nn.Module = field(default_factory=network)
    state: dict[str, Any] = field(default_factory=dict)
    began_at: int = 0

    def __call__(self, run: elasticps.Run) -> Training:
        options = self.options or OPTIMIZERS[self.name]
        optimizer = run.optimizer(self.model, self.name, **options)
        self.began_at = run.round
        for batch in run.data(dataset(), batch_size=BATCH, epochs=self.epochs, seed=self.seed):
            self.batches.append(batch[0])
            optimizer.zero_grad()
            backward(self.model, batch)
            optimizer.step()
            if run.round == self.stop_at:
                break
        self.state = optimizer.state_dict()["state"]
        return self


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for parameter, state in one.items():
        assert state.keys() == other[parameter].keys()
        for key, item in state.items():
            assert torch.equal(torch.as_tensor(item), torch.as_tensor(other[parameter][key]))


def rounds_in(root: Path) -> list[int]:
    return [number for number, _ in complete(root)]


STOPS = (7, 8, 10)


# The data set has 60 samples: rounds 8, 16 and 24 have four samples, all others eight.
@pytest.mark.parametrize(
    ("name", "stop_at"),
    short_are(*zip(OPTIMIZERS, cycle(STOPS), strict=False), of=product(OPTIMIZERS, STOPS)),
)
async def test_a_resumed_job_goes_on_as_if_never_stopped(
    name: str, stop_at: int, tmp_path: Path
) -> None:
    async with CheckpointRig(servers=2) as rig:
        straight = await as_worker(rig, Training(name=name))
    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": stop_at}
    async with CheckpointRig(servers=3, **wishes) as rig:
        first = await as_worker(rig, Training(name=name, stop_at=stop_at))
    assert rounds_in(tmp_path) == [stop_at]
    other_start = Training(name=name, model=network(seed=9))
    async with CheckpointRig(servers=1, block_bytes=8192, resume=str(tmp_path)) as rig:
        second = await as_worker(rig, other_start)
        assert rig.ledger.round == 24
    assert second.began_at == stop_at
    assert_equal(second.model, straight.model)
    assert_same_state(second.state, straight.state)
    batches = [*first.batches, *second.batches]
    assert len(batches) == len(straight.batches) == 24
    assert all(map(torch.equal, batches, straight.batches))


async def test_a_resumed_job_clips_as_if_never_stopped(tmp_path: Path) -> None:
    clipped = partial(Training, options={"lr": 0.05, "momentum": 0.9, "clip_grad_norm": 0.3})
    async with CheckpointRig(start_workers=2) as rig:
        straight, _ = await as_workers(rig, 2, lambda run: clipped()(run))
    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 10}
    async with CheckpointRig(**wishes) as rig:
        await as_worker(rig, clipped(stop_at=10))
    async with CheckpointRig(servers=3, block_bytes=8192, resume=str(tmp_path)) as rig:
        resumed = await as_worker(rig, clipped(model=network(seed=9)))
    assert resumed.began_at == 10
    assert_equal(resumed.model, straight.model, exactly=False)


async def test_two_workers_resume_to_the_bit(tmp_path: Path) -> None:
    async with CheckpointRig(start_workers=2) as rig:
        straight, _ = await as_workers(rig, 2, lambda run: Training(name="adam")(run))
    wishes: dict[str, Any] = {
        "checkpoint_dir": str(tmp_path),
        "checkpoint_every": 7,
        "start_workers": 2,
    }
    async with CheckpointRig(**wishes) as rig:
        await as_workers(rig, 2, lambda run: Training(name="adam", stop_at=7)(run))
    async with CheckpointRig(resume=str(tmp_path), start_workers=2, servers=3) as rig:
        resumed = await as_workers(rig, 2, lambda run: Training(name="adam")(run))
        verdicts = await rig.verdicts(2)
        assert all(verdict.lost == 0 for verdict in verdicts)
    for one in resumed:
        assert one.began_at == 7
        assert_equal(one.model, straight.model)
        assert_same_state(one.state, straight.state)


async def test_a_job_is_resumed_with_more_workers_and_more_epochs(tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 10}
    async with CheckpointRig(**wishes) as rig:
        first = await as_worker(rig, Training(epochs=2, stop_at=10))
    async with CheckpointRig(resume=str(tmp_path), start_workers=3) as rig:
        rest = await as_workers(rig, 3, lambda run: Training(epochs=4)(run))
    used = torch.cat([batch for one in (first, *rest) for batch in one.batches])
    every, counts = torch.unique(used, dim=0, return_counts=True)
    assert len(every) == 60
    assert counts.tolist() == [4] * 60


async def test_as_many_stay_as_are_wanted(tmp_path: Path) -> None:
    wishes = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 2, "checkpoint_keep": 1}
    async with CheckpointRig(**wishes) as rig:
        await as_worker(rig, Training(stop_at=5))
    assert rounds_in(tmp_path) == [4]


async def test_the_last_three_stay_and_the_newest_is_resumed(tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 2}
    async with CheckpointRig(**wishes) as rig:
        await as_worker(rig, Training(stop_at=9))
    assert rounds_in(tmp_path) == [8, 6, 4]
    async with CheckpointRig(resume=str(tmp_path), **wishes) as rig:
        assert (await as_worker(rig, Training(stop_at=11))).began_at == 8
    assert rounds_in(tmp_path) == [10, 8, 6]
    async with CheckpointRig(resume=str(tmp_path / "round-00000006")) as rig:
        assert (await as_worker(rig, Training(stop_at=7))).began_at == 6


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


class SlowDisk:
    """Holds up every block that a shard server writes until it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.waiting = 0
        self._write = saving.write_block
        patch.setattr(saving, "write_block", self)

    def __call__(self, *what: Any) -> Any:
        self.waiting += 1
        self.go_on.wait(PATIENCE_S)
        return self._write(*what)


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


async def test_a_job_begins_with_weights_from_a_file(tmp_path: Path) -> None:
    start = network(seed=5)
    save_file(start.state_dict(), tmp_path / "w.safetensors")
    import_weights(tmp_path / "w.safetensors", tmp_path / "start", version="0")
    async with CheckpointRig() as rig:
        straight = await as_worker(rig, Training(name="adam", model=network(seed=5)))
    async with CheckpointRig(resume=str(tmp_path / "start"), start_workers=1) as rig:
        imported = await as_worker(rig, Training(name="adam", model=network(seed=9)))
    assert imported.began_at == 0
    assert_equal(imported.model, straight.model)


# -- with another optimizer ---------------------------------------------------------------------


def trained_alone(first: str, then: str, *, keeps: bool) -> nn.Module:
    """Five steps by ``first``, eleven by ``then``, in this process."""
    model, data = network(), list(local_batches(epochs=2))
    optimizer = LOCAL[first](model.parameters(), lr=0.01)
    train(model, optimizer, data[:5])
    other = LOCAL[then](model.parameters(), lr=0.01)
    if keeps:
        state = optimizer.state_dict()["state"]
        other.load_state_dict({**other.state_dict(), "state": state})
    train(model, other, data[5:])
    return model


@pytest.mark.parametrize(
    ("first", "then", "reset", "keeps"),
    [
        ("adam", "adamw", False, True),
        ("sgd", "adam", False, False),
        ("adam", "sgd", True, False),
        ("adam", "adam", True, False),
    ],
)
async def test_a_job_goes_on_with_another_optimizer(
    first: str,
    then: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    reset: bool,
    keeps: bool,
) -> None:
    options = {"options": {"lr": 0.01}, "epochs": 2, "seed": 0}
    async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=5) as rig:
        await as_worker(rig, Training(name=first, stop_at=5, **options))
    async with CheckpointRig(resume=str(tmp_path), resume_reset_optimizer=reset) as rig:
        resumed = await as_worker(rig, Training(name=then, model=network(seed=9), **options))
    assert resumed.began_at == 5
    assert_equal(resumed.model, trained_alone(first, then, keeps=keeps), exactly=False)
    told = f"{then} goes on from the moments of {first}" if keeps else f"{then} begins with none"
    assert told in caplog.text


async def test_a_strategy_whose_workers_step_begins_with_no_state_where_that_is_said(
    tmp_path: Path,
) -> None:
    async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=5) as rig:
        await as_worker(rig, Training(name="adam", stop_at=5))
    wishes: dict[str, Any] = {"resume": str(tmp_path), "strategy": "gossip"}
    error = await refused(Training(name="adam"), **wishes)
    assert "adam there, sgd here, which is what the servers run for gossip" in error.what
    async with CheckpointRig(**wishes, resume_reset_optimizer=True) as rig:
        resumed = await as_worker(rig, Training(name="adam"))
    assert resumed.began_at == 5
    assert resumed.state[0]["step"] == 24 - 5


# -- what is refused ----------------------------------------------------------------------------


async def refused(script: Any = None, **wishes: Any) -> CheckpointError:
    def attempt(run: elasticps.Run) -> CheckpointError:
        with pytest.raises(CheckpointError) as caught:
            (script or Training())(run)
        return caught.value

    async with CheckpointRig(**wishes) as rig:
        error = await as_worker(rig, attempt)
    assert isinstance(error, CheckpointError)
    return error


@pytest.fixture
async def at_five(tmp_path: Path) -> Path:
    """A directory with one checkpoint, of round 5."""
    root = tmp_path / "five"
    async with CheckpointRig(checkpoint_dir=str(root), checkpoint_every=5) as rig:
        await as_worker(rig, Training(stop_at=5))
    return root


@pytest.mark.parametrize(
    "other",
    [
        {"replicas": 2, "codec": "int8"},
        {"strategy": "local-sgd"},
        {"strategy": "all-reduce"},
        {"codec": "ef+top-k:ratio=0.1", "consistency": Consistency.ASYNC},
    ],
    ids=["replicas and codec", "local-sgd", "all-reduce", "top-k, async"],
)
async def test_a_job_goes_on_with_other_replicas_codec_strategy_and_consistency(
    other: dict[str, Any], at_five: Path
) -> None:
    place = at_five / "round-00000005"
    begun: dict[str, torch.Tensor] = {}

    def script(run: elasticps.Run) -> Training:
        training = Training(model=network(seed=9))
        optimizer = run.optimizer(training.model, "sgd", **OPTIMIZERS["sgd"])
        training.began_at = run.round
        for batch in run.data(dataset(), batch_size=BATCH, epochs=3, seed=4):
            if not begun:
                begun.update(
                    {key: item.clone() for key, item in training.model.state_dict().items()}
                )
            training.batches.append(batch[0])
            optimizer.zero_grad()
            backward(training.model, batch)
            optimizer.step()
        return training

    async with Rig(2, resume=str(at_five), **other) as rig:
        second = await as_worker(rig, script)
    assert second.began_at == 5
    values = read(place).values
    assert all(torch.equal(begun[key], item) for key, item in values.items())
    assert sum(map(len, second.batches)) == 3 * 60 - 5 * BATCH


async def test_another_model_is_refused(at_five: Path) -> None:
    error = await refused(Training(model=nn.Linear(6, 1)), resume=str(at_five))
    assert error.field == "parameters"


async def test_a_damaged_checkpoint_is_refused(at_five: Path) -> None:
    file = min((at_five / "round-00000005").glob("block-*"))
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    error = await refused(resume=str(at_five))
    assert (error.field, error.hint) == ("blocks[0].file.sha256", None)


async def test_a_damaged_newest_one_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wishes: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 3}
    async with CheckpointRig(**wishes) as rig:
        await as_worker(rig, Training(stop_at=9))
    newest_one, before, oldest = (path for _, path in complete(tmp_path))
    (newest_one / "manifest.json").write_bytes(b"\0")
    min(before.glob("block-*")).write_bytes(b"")
    told = str((await refused(resume=str(oldest), **wishes)).hint)
    assert f"move {newest_one} and {before} away" in told
    assert (await refused(resume=str(newest_one))).field == "manifest.json"
    async with CheckpointRig(resume=str(tmp_path), **wishes) as rig:
        assert (await as_worker(rig, Training(stop_at=7))).began_at == 3
    for damaged in (newest_one, before):
        assert f"{damaged} is damaged" in caplog.text
        assert (tmp_path / f"damaged-{damaged.name}").is_dir()
    assert f"going on from {oldest}" in caplog.text
    assert rounds_in(tmp_path) == [6, 3]


async def test_nothing_to_resume_is_refused(tmp_path: Path) -> None:
    assert (await refused(resume=str(tmp_path))).field == "resume"


async def test_another_runs_later_checkpoints_are_in_the_way(at_five: Path) -> None:
    error = await refused(checkpoint_dir=str(at_five), checkpoint_every=5)
    assert error.field == "checkpoint_dir"
    assert rounds_in(at_five) == [5]


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


class NeverQuiet(Pace):
    """That of a server whose workers leave it no time."""

    def wait_s(self) -> float:
        return 0.0 if self._hurries else 0.005


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "periodic"])
async def test_a_checkpoint_that_somebody_waits_for_is_not_paced(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "Pace", NeverQuiet)
    rig = CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=0 if asked else 2)
    loop = asyncio.get_running_loop()

    def script(run: elasticps.Run) -> list[int]:
        model = network()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            if run.round == 1 and asked:
                loop.call_soon_threadsafe(rig.ask, 42)
                wait_until(lambda: run._job.checkpoint_request == 42)
            if run.round == 3:
                break
            backward(model, batch)
            optimizer.step()
        if asked:
            wait_until(lambda: rounds_in(tmp_path) == [2])
        return rounds_in(tmp_path)

    async with rig:
        assert await as_worker(rig, script) == ([2] if asked else [])
    assert rounds_in(tmp_path) == [2]  # a job that ends waits for its last one


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


async def test_a_job_of_whole_rounds_goes_on_without(at_five: Path) -> None:
    async with CheckpointRig(resume=str(at_five), consistency=Consistency.ASYNC) as rig:
        assert (await as_worker(rig, Training(stop_at=9))).began_at == 5


async def test_other_data_is_refused(at_five: Path) -> None:
    def script(run: elasticps.Run) -> str:
        run.optimizer(network(), "sgd", **OPTIMIZERS["sgd"])
        other = TensorDataset(torch.zeros(61, 1))
        with pytest.raises(JobFailed, match="60 samples") as caught:
            next(iter(run.data(other, batch_size=BATCH, epochs=3, seed=4)))
        return str(caught.value)

    async with CheckpointRig(resume=str(at_five)) as rig:
        told = await as_worker(rig, script)
    assert "61" in told
    assert "`elasticps checkpoint export`" in told


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
