"""A stage on torch's pipelining: this notices when torch changes what it wants of a group."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.distributed_c10d import _world

from elasticps.errors import MembershipChanged, UsageError
from elasticps.strategies.stage import Shapes, StageGroup, run_stage

ROWS, WIDTH = 8, 5


class Shelves:
    """Peers of one process: all shelves are one dictionary. ``over`` ends every wait."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.changed = threading.Condition()
        self.over = False
        self.cancelled = 0

    def put(self, key: str, tensor: torch.Tensor) -> None:
        with self.changed:
            self.tensors[key] = tensor.detach().clone()
            self.changed.notify_all()

    def start_fetch(self, rank: int, key: str) -> Fetch:
        return Fetch(self, key)


class Fetch:
    def __init__(self, shelves: Shelves, key: str) -> None:
        self.shelves, self.key = shelves, key

    def wait(self) -> torch.Tensor:
        shelves = self.shelves
        with shelves.changed:
            shelves.changed.wait_for(lambda: shelves.over or self.key in shelves.tensors)
            if shelves.over:
                raise MembershipChanged("over")
            return shelves.tensors[self.key]

    def cancel(self) -> None:
        self.shelves.cancelled += 1


def network() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)]


def summed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().sum()


def passed(
    shelves: Shelves, layers: list[nn.Module], stage: int, schedule: str, microbatches: int
) -> list[torch.Tensor]:
    batch = torch.linspace(-1, 1, ROWS * WIDTH).view(ROWS, WIDTH)
    meta = torch.empty(ROWS // microbatches, WIDTH, device="meta")
    with StageGroup(shelves, range(3), stage, "p") as group:  # type: ignore[arg-type]
        return run_stage(
            group,
            [layers[stage]],
            Shapes(inputs=meta, outputs=meta),
            microbatches,
            schedule,
            summed,
            inputs=batch if stage == 0 else None,
            targets=batch.flip(0) if stage == 2 else None,
        )


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("microbatches", [2, 4])
def test_losses_and_gradients_are_those_of_the_whole_model(
    schedule: str, microbatches: int
) -> None:
    shelves, layers = Shelves(), network()
    with ThreadPoolExecutor(3) as threads:
        works = [
            threads.submit(passed, shelves, layers, stage, schedule, microbatches)
            for stage in range(3)
        ]
        losses = [work.result(60) for work in works]
    got = [item.grad for layer in layers for item in layer.parameters()]
    local = nn.Sequential(*network())
    batch = torch.linspace(-1, 1, ROWS * WIDTH).view(ROWS, WIDTH)
    loss = summed(local(batch), batch.flip(0))
    loss.backward()
    assert losses[:2] == [[], []]
    torch.testing.assert_close(sum(losses[2]), loss.detach())
    for mine, item in zip(got, local.parameters(), strict=True):
        torch.testing.assert_close(mine, item.grad)
    assert not torch.distributed.is_initialized()
    assert not [group for group in _world.pg_group_ranks if isinstance(group, StageGroup)]


def test_the_ledgers_word_ends_a_pass_whose_next_stage_never_comes() -> None:
    shelves, layers = Shelves(), network()
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(passed, shelves, layers, 0, "gpipe", 2)
        with shelves.changed:
            shelves.changed.wait_for(lambda: bool(shelves.tensors), 60)
            shelves.over = True
            shelves.changed.notify_all()
        with pytest.raises(MembershipChanged):
            work.result(60)
    assert shelves.cancelled
    assert not [group for group in _world.pg_group_ranks if isinstance(group, StageGroup)]


def test_a_tensor_of_another_shape_is_an_error_and_no_wrong_number() -> None:
    shelves = Shelves()
    with StageGroup(shelves, range(2), 0, "p") as group:  # type: ignore[arg-type]
        group.send([torch.ones(2, 3)], 1, 0)
    with StageGroup(shelves, range(2), 1, "p") as group:  # type: ignore[arg-type]
        work = group.recv([torch.empty(4, 3)], 0, 0)
        with pytest.raises(UsageError, match="as on the meta device"):
            work.wait()
