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
from elasticps.core.commands import Turn
from elasticps.core.ids import Generation, Round
from elasticps.errors import CheckpointError
from elasticps.testing.rig import Rig
from elasticps.wire.control_messages import JobInfo
from elasticps.worker import checkpoints
from elasticps.worker.checkpoint_making import Making
from elasticps.worker.exchange import Exchange
from elasticps.worker.own_state import OwnState
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


async def test_frozen_parameters_go_on_as_the_checkpoint_has_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=2) as rig:
        model = await as_worker(rig, lambda run: trained(run, rounds=2))
    async with CheckpointRig(resume=str(tmp_path)) as rig:
        resumed = await as_worker(rig, lambda run: trained(run, rounds=2, seed=5))
    assert_same(resumed, model)
    assert resumed.beside is resumed.frozen
    assert not resumed.frozen.weight.requires_grad
    told = "frozen parameters have other values in the checkpoint, which are taken: "
    assert f"{told}frozen.bias [6] float32, frozen.weight [6, 6] float32" in caplog.text


# -- frozen parameters are not copied, and what cannot be in a file is told ------------------------


def averaged(run: elasticps.Run, *, rounds: int, move: Callable[[int, Tied], None]) -> Tied:
    model = Tied(0)
    optimizer = run.optimizer(model, "sgd", lr=0.1)
    while run.round < rounds:
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            move(run.round, model)
    return model


def test_what_is_frozen_is_not_copied_unless_it_changes() -> None:
    model = Tied(0)
    trained = {name: item for name, item in model.named_parameters() if item.requires_grad}
    turn = Turn(round=Round(1), generation=Generation(1), rank=0, world=1)
    own = OwnState(model, trained, lambda: turn)
    own.watch()
    still = own.take().frozen["frozen.weight"]
    assert still.data_ptr() == model.frozen.weight.data_ptr()
    model.frozen.weight.data += 1  # which no version counter tells
    taken = own.take()
    assert taken.frozen["frozen.weight"].data_ptr() != model.frozen.weight.data_ptr()
    assert taken.frozen["frozen.bias"].data_ptr() == model.frozen.bias.data_ptr()
    assert taken.prints.keys() == {"frozen.bias"}


async def test_a_moving_average_is_in_a_checkpoint_as_at_the_cut(tmp_path: Path) -> None:
    def move(round_: int, model: Tied) -> None:
        model.frozen.weight.fill_(float(round_))

    async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=3) as rig:
        await as_worker(rig, lambda run: averaged(run, rounds=7, move=move))
        attempts = rig.progress["w1"].checkpoint_attempts
    assert (attempts.made, attempts.failed) == (2, 0)
    for number in (3, 6):
        export(tmp_path / f"round-{number:08d}", tmp_path / f"{number}.safetensors")
        found = load_file(tmp_path / f"{number}.safetensors")["frozen.weight"]
        assert torch.equal(found, torch.full((6, 6), float(number - 1)))


async def test_what_is_changed_while_it_is_written_costs_that_checkpoint_alone(
    tmp_path: Path,
) -> None:
    changed = threading.Event()

    class Late(Making):
        async def end(self, exchange: Exchange) -> None:
            await asyncio.to_thread(changed.wait, PATIENCE_S)
            await super().end(exchange)

    def move(round_: int, model: Tied) -> None:
        if round_ == 4:
            model.frozen.weight += 1
            changed.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "Making", Late)
        async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=3) as rig:
            model = await as_worker(rig, lambda run: averaged(run, rounds=6, move=move))
            attempts = rig.progress["w1"].checkpoint_attempts
    assert (attempts.made, attempts.failed) == (1, 1)
    assert "frozen.weight, which the job does not train, was changed" in attempts.error
    made = export(tmp_path / "round-00000006", tmp_path / "6.safetensors")
    assert made.tensors == len(model.state_dict())
    assert torch.equal(load_file(tmp_path / "6.safetensors")["frozen.weight"], model.frozen.weight)


class Turned(nn.Module):
    """Turns pairs of numbers, as rotary embeddings do."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)
        angles = torch.polar(torch.ones(2), torch.tensor([start, start + 1.0]))
        self.register_buffer("turn", angles)
        self.register_buffer("exact", angles.to(torch.complex128))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        turned = torch.view_as_complex(inputs.view(-1, 2, 2)) * self.turn
        return self.head(torch.view_as_real(turned).reshape(-1, 4))


async def test_complex_numbers_are_resumed_and_exported_and_what_cannot_be_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(run: elasticps.Run, start: float, rounds: int) -> Turned:
        model = Turned(start)
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        while run.round < rounds:
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        return model

    async with CheckpointRig(checkpoint_dir=str(tmp_path), checkpoint_every=2) as rig:
        model = await as_worker(rig, lambda run: script(run, 0.5, 2))
    assert "tensors that no checkpoint has: exact (complex128)" in caplog.text
    async with CheckpointRig(resume=str(tmp_path)) as rig:
        resumed = await as_worker(rig, lambda run: script(run, 0.0, 2))
    assert torch.equal(resumed.turn, model.turn)
    out = tmp_path / "out.safetensors"
    assert main(["checkpoint", "export", str(tmp_path), str(out)]) == 0
    assert "exact is not in it: no checkpoint has tensors of complex128" in capsys.readouterr().err
    found = load_file(out)
    assert found.keys() == model.state_dict().keys() - {"exact"}
    assert torch.equal(found["turn"], model.turn)
    assert export(tmp_path / "round-00000002", out, force=True).left_out == {"exact": "complex128"}


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
