"""What a job goes on from: as if never stopped, with other settings, or not at all."""

from __future__ import annotations

from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.snapshot import read
from elasticps.checkpoint.weights_file import import_weights
from elasticps.core.consistency import Consistency
from elasticps.errors import JobFailed
from elasticps.testing.rig import Rig
from tests.support.cases import short_are
from tests.support.checkpoint_rig import (
    BATCH,
    OPTIMIZERS,
    CheckpointRig,
    Training,
    refused,
    rounds_in,
)
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

LOCAL: dict[str, Any] = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for parameter, state in one.items():
        assert state.keys() == other[parameter].keys()
        for key, item in state.items():
            assert torch.equal(torch.as_tensor(item), torch.as_tensor(other[parameter][key]))


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


# -- with other settings ------------------------------------------------------------------------


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


async def test_a_job_of_whole_rounds_goes_on_without(at_five: Path) -> None:
    async with CheckpointRig(resume=str(at_five), consistency=Consistency.ASYNC) as rig:
        assert (await as_worker(rig, Training(stop_at=9))).began_at == 5


# -- what is refused ----------------------------------------------------------------------------


async def test_another_model_is_refused(at_five: Path) -> None:
    error = await refused(Training(model=nn.Linear(6, 1)), resume=str(at_five))
    assert error.field == "parameters"


async def test_a_damaged_checkpoint_is_refused(at_five: Path) -> None:
    file = min((at_five / "round-00000005").glob("block-*"))
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    error = await refused(resume=str(at_five))
    assert (error.field, error.hint) == ("blocks[0].file.xxh128", None)


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
