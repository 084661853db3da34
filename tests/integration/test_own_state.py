"""Buffers, frozen parameters and random numbers of a resumed job go on as if it had never stopped,
and an export has all that a plain model loads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import elasticps
from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.export import export
from elasticps.checkpoint.manifest import MANIFEST, Manifest, encoded, read_manifest
from elasticps.checkpoint.weights_file import import_weights
from elasticps.checkpoint.worker_file import WORKER
from elasticps.cli.main import main
from elasticps.errors import CheckpointError
from elasticps.testing.rig import Rig
from elasticps.wire.control_messages import JobInfo
from tests.support.scripts import BATCH, as_worker, backward
from tests.support.wire import PATIENCE_S


class CheckpointRig(Rig):
    def __init__(self, **wishes: Any) -> None:
        super().__init__(2)
        self._wishes = wishes

    def _job_message(self) -> JobInfo:
        return msgspec.structs.replace(super()._job_message(), **self._wishes)


class Noisy(TensorDataset):
    """Draws a number for each sample that is read."""

    def __getitem__(self, index: int) -> Any:
        inputs, targets = super().__getitem__(index)
        return inputs + 0.01 * torch.randn(6), targets


def regularized(width: int = 40) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width, bias=False), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1)
    )


def script(run: elasticps.Run, stop_at: int = 0, seed: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = regularized()
    optimizer = run.optimizer(model, "adam", lr=0.01)
    inputs = torch.randn(60, 6)
    data = Noisy(inputs, inputs.sum(1, keepdim=True))
    if seed is not None:
        run.seed(seed)
    for batch in run.data(data, batch_size=BATCH, epochs=2, seed=4):
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
        if run.round == stop_at:
            break
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, item in one.state_dict().items():
        assert torch.equal(item, theirs[name]), name


@pytest.mark.parametrize("seed", [None, 5])
async def test_dropout_and_running_statistics_go_on_to_the_bit(
    seed: int | None, tmp_path: Path
) -> None:
    async with CheckpointRig() as rig:
        straight = await as_worker(rig, lambda run: script(run, seed=seed))
    async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=5) as rig:
        await as_worker(rig, lambda run: script(run, stop_at=7, seed=seed))
    async with CheckpointRig(resume=str(tmp_path)) as rig:
        resumed = await as_worker(rig, lambda run: script(run, seed=seed))
    assert_same(resumed, straight)


async def saved(root: Path) -> Path:
    async with CheckpointRig(checkpoint_dir=str(root), checkpoint_every=5) as rig:
        await as_worker(rig, lambda run: script(run, stop_at=5))
    return root / "round-00000005"


async def test_buffers_of_another_shape_are_refused_with_both_named(tmp_path: Path) -> None:
    place = await saved(tmp_path)

    def other(run: elasticps.Run) -> None:
        model = regularized()
        model[1].running_mean = torch.zeros(7)
        run.optimizer(model, "adam", lr=0.01)

    async with CheckpointRig(resume=str(place)) as rig:
        with pytest.raises(CheckpointError, match=r"\[40\] float32 there, \[7\] float32 here"):
            await as_worker(rig, other)


async def test_a_checkpoint_without_a_workers_state_is_resumed_all_the_same(tmp_path: Path) -> None:
    place = await saved(tmp_path)
    manifest: Manifest = msgspec.structs.replace(read_manifest(place), worker=None)
    (place / MANIFEST).write_bytes(encoded(manifest))
    (place / WORKER).unlink()
    async with CheckpointRig(resume=str(place)) as rig:
        resumed = await as_worker(rig, lambda run: script(run))
    assert int(resumed[1].num_batches_tracked) == 11


async def test_buffers_are_there_before_the_first_step(tmp_path: Path) -> None:
    place = await saved(tmp_path)

    def looks(run: elasticps.Run) -> int:
        model = regularized()
        run.optimizer(model, "adam", lr=0.5)
        return int(model[1].num_batches_tracked)

    async with CheckpointRig(resume=str(place)) as rig:
        assert await as_worker(rig, looks) == 5


class Tied(nn.Module):
    """A layer that is frozen, running statistics, and one weight under two names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.inner = nn.Linear(6, 6, bias=False)
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(6, 1)
        self.register_buffer("not_kept", torch.ones(2), persistent=False)
        self.frozen.requires_grad_(False)
        self.beside = self.frozen  # frozen, and under two names as well

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.beside(inputs))
        return self.head(torch.tanh(self.again(torch.tanh(self.inner(out)))))


def trained(run: elasticps.Run, *, rounds: int, seed: int = 0) -> Tied:
    model = Tied(seed)
    optimizer = run.optimizer(model, "sgd", lr=0.1)
    while run.round < rounds:
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    return model


async def test_an_export_loads_strictly_in_torch_alone(tmp_path: Path) -> None:
    out, start = tmp_path / "out.safetensors", tmp_path / "start"
    async with CheckpointRig(checkpoint_dir=str(tmp_path / "saved"), checkpoint_every=2) as rig:
        model = await as_worker(rig, lambda run: trained(run, rounds=4))
    places = [tmp_path / "saved" / f"round-{number:08d}" for number in (2, 4)]
    made = export(places[1], out)
    plain = Tied(seed=9)
    plain.load_state_dict(load_file(out), strict=True)
    assert_same(plain, model)
    assert made.tensors == len(model.state_dict())
    first, second = (next(place.glob("frozen*")).stat().st_ino for place in places)
    assert first == second  # what is frozen is written once

    import_weights(out, start, version="0")
    async with CheckpointRig(resume=str(start)) as rig:
        begun = await as_worker(rig, lambda run: trained(run, rounds=0, seed=5))
    assert_same(begun, model)


async def test_frozen_parameters_go_on_as_the_checkpoint_has_them(tmp_path: Path) -> None:
    async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=2) as rig:
        model = await as_worker(rig, lambda run: trained(run, rounds=2))
    async with CheckpointRig(resume=str(tmp_path)) as rig:
        resumed = await as_worker(rig, lambda run: trained(run, rounds=2, seed=5))
    assert_same(resumed, model)
    assert resumed.beside is resumed.frozen
    assert not resumed.frozen.weight.requires_grad


class Rare(nn.Module):
    """Buffers of all dtypes that there is a name for, one that has none, and an extra state."""

    STORED = (
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
        *(torch.uint16, torch.uint32, torch.uint64, torch.complex64),
    )

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        for dtype in self.STORED:
            name = str(dtype).removeprefix("torch.")
            self.register_buffer(name, torch.full((3,), float(number)).to(dtype))
        self.register_buffer("wide", torch.zeros(2, dtype=torch.complex128))

    def get_extra_state(self) -> int:
        return 0

    def set_extra_state(self, state: int) -> None: ...


async def test_buffers_of_rare_dtypes_go_on_and_what_cannot_be_stored_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(run: elasticps.Run, number: int = 0) -> Rare:
        model = Rare()
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        if number:
            model.load_state_dict(Rare(number).state_dict())
        while run.round < 1:
            optimizer.zero_grad()
            model.layer(torch.randn(8, 2)).sum().backward()
            optimizer.step()
        return model

    left_out = "wide (complex128), _extra_state"
    root, out = tmp_path / "saved", tmp_path / "out.safetensors"
    async with CheckpointRig(checkpoint_dir=str(root), checkpoint_every=1) as rig:
        model = await as_worker(rig, lambda run: script(run, 3))
    assert f"in no checkpoint, since no file can hold it: {left_out}" in caplog.text
    async with CheckpointRig(resume=str(root)) as rig:
        resumed = await as_worker(rig, script)
    assert main(["checkpoint", "export", str(root), str(out)]) == 0
    assert f"no file can hold it: {left_out}" in capsys.readouterr().err
    exported, there = load_file(out), model.state_dict()
    assert exported.keys() == there.keys() - {"wide", "_extra_state"}
    for name in exported:
        for other in (exported, resumed.state_dict()):
            assert other[name].dtype == there[name].dtype
            assert torch.equal(other[name].view(torch.uint8), there[name].view(torch.uint8))


# -- damaged ------------------------------------------------------------------------------------


async def two_rounds_apart(root: Path) -> tuple[Path, Path]:
    """The newest checkpoint, of round 4, and the one before it, of round 2."""
    async with CheckpointRig(checkpoint_dir=str(root), checkpoint_every=2) as rig:
        await as_worker(rig, lambda run: trained(run, rounds=4))
    return root / "round-00000004", root / "round-00000002"


def damage(file: Path, how: str) -> None:
    """Of this name alone: an earlier checkpoint may have the same file."""
    body = bytearray(file.read_bytes())
    file.unlink()
    if how == "flipped":
        body[-1] ^= 1
        file.write_bytes(body)


@pytest.mark.parametrize("how", ["flipped", "missing"])
@pytest.mark.parametrize("part", ["worker", "frozen", "block"])
async def test_a_checkpoint_with_any_damaged_file_is_passed_over_whole_or_refused(
    part: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest, before = await two_rounds_apart(tmp_path)
    damage(min(newest.glob(f"{part}*")), how)
    async with CheckpointRig(resume=str(tmp_path)) as rig:
        resumed = await as_worker(rig, lambda run: trained(run, rounds=2, seed=5))
    assert int(resumed.norm.num_batches_tracked) == 2
    assert f"{newest} is damaged" in caplog.text
    async with CheckpointRig(resume=str(before)) as rig:
        assert_same(resumed, await as_worker(rig, lambda run: trained(run, rounds=2, seed=7)))
    async with CheckpointRig(resume=str(newest)) as rig:
        with pytest.raises(CheckpointError, match=r"damaged|missing") as caught:
            await as_worker(rig, lambda run: trained(run, rounds=4))
    assert str(caught.value.field).startswith(part)


async def joined_late(rig: Rig, ready: Callable[[], bool]) -> int:
    """How many batches the running statistics of a worker count that joins once it is time."""
    is_ready, is_over = threading.Event(), threading.Event()

    def first(run: elasticps.Run) -> None:
        model = Tied(seed=5)
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        while not is_over.is_set():
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            if run.round >= 6 and ready():
                is_ready.set()

    async def second() -> int:
        try:
            await asyncio.to_thread(is_ready.wait, PATIENCE_S)
            model = await as_worker(rig, lambda run: trained(run, rounds=0, seed=5), "w2")
            return int(model.norm.num_batches_tracked)
        finally:
            is_over.set()

    _, count = await asyncio.gather(as_worker(rig, first), second())
    return count


async def test_who_joins_late_takes_the_checkpoint_that_the_job_went_on_from(
    tmp_path: Path,
) -> None:
    newest, _ = await two_rounds_apart(tmp_path)
    damage(min(newest.glob("block*")), "flipped")
    async with CheckpointRig(resume=str(tmp_path)) as rig:
        assert await joined_late(rig, lambda: True) == 2


async def test_who_joins_late_takes_the_newest_that_the_job_has_made_itself(
    tmp_path: Path,
) -> None:
    await two_rounds_apart(tmp_path / "theirs")
    own = tmp_path / "own"
    wishes = {"identity": "2", "checkpoint_dir": str(own), "checkpoint_every": 1}
    async with CheckpointRig(resume=str(tmp_path / "theirs"), **wishes) as rig:
        assert await joined_late(rig, lambda: bool(complete(own))) > 4


async def test_who_joins_late_and_finds_no_checkpoint_is_refused(tmp_path: Path) -> None:
    newest, before = await two_rounds_apart(tmp_path)

    def gone() -> bool:
        if newest.exists():
            newest.rename(tmp_path / "away")
        return before.exists()

    async with CheckpointRig(resume=str(tmp_path)) as rig:
        with pytest.raises(CheckpointError, match="round 4, which the job went on from"):
            await joined_late(rig, gone)
