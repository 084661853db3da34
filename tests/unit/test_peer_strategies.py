"""Strategies among peers on a worker of the test: a round that fails is as if never begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn, optim

from elasticps.errors import MembershipChanged, PeerUnavailable
from elasticps.strategies.all_reduce import AllReduce
from elasticps.strategies.among_peers import AmongPeers
from elasticps.strategies.flat import common_dtype, flattened, scatter
from elasticps.strategies.gossip import Gossip
from elasticps.strategies.member_state import packed, unpack


class FakePeers:
    """There is one other member, which has the same as this one."""

    def __init__(self) -> None:
        self.members = (1, 2)
        self.shelf: dict[str, torch.Tensor] = {}
        self.failures: list[Exception] = []

    def put(self, key: str, tensor: torch.Tensor) -> None:
        self.shelf[key] = tensor.clone()

    def fetch(self, rank: int, key: str) -> torch.Tensor:
        return self.shelf[key].clone()

    def fetch_all(self, wanted: Mapping[int, str]) -> dict[int, torch.Tensor]:
        self._fail()
        return {rank: self.fetch(rank, key) for rank, key in wanted.items()}

    def sum(self, tensor: torch.Tensor) -> None:
        tensor.mul_(2)
        self._fail()

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop()


class FakeWorker:
    """What a strategy may ask, with shards that take what is agreed on."""

    rank, world, generation, round = 0, 2, 1, 0
    leaving = ends_data = False
    weight = 3.0
    consistency, backup_workers, codec = "sync", 0, "none"

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(5, 3)
        self.parameters = dict(self.model.named_parameters())
        self.local_optimizer = optim.AdamW(self.model.parameters(), lr=0.1, **options)
        self.peers = FakePeers()
        self.served = {name: item.detach().clone() for name, item in self.parameters.items()}
        self.refusals = 0
        self.regroups = 0
        self.updates: list[Any] = []

    def agree(self, updates: Any = None, *, weight: float | None = None) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        for name, update in (updates or {}).items():
            self.served[name] = self.served[name] - update
        self.updates.append(updates)
        self.round += 1
        return True

    def regroup(self) -> None:
        self.regroups += 1

    def pull(self) -> None:
        pass

    def step(self, strategy: AmongPeers, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        for parameter in self.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        strategy.step(self)  # type: ignore[arg-type]

    def state(self) -> torch.Tensor:
        return packed(self)  # type: ignore[arg-type]


STRATEGIES = {
    "all-reduce": lambda: AllReduce(publish_every=2),
    "gossip": lambda: Gossip(publish_every=2),
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("failing_round", [1, 2, 3])
@pytest.mark.parametrize("failure", ["peer", "members", "agreement", "all"])
def test_a_round_that_is_begun_anew_comes_to_the_same_numbers(
    name: str, failing_round: int, failure: str
) -> None:
    smooth, rough = FakeWorker(), FakeWorker()
    strategies = [STRATEGIES[name](), STRATEGIES[name]()]
    for number in (1, 2, 3):
        if number == failing_round:
            if failure in ("peer", "all"):
                rough.peers.failures.append(PeerUnavailable("gone"))
            if failure in ("members", "all"):
                rough.peers.failures.append(MembershipChanged("others"))
            if failure in ("agreement", "all"):
                rough.refusals = 2
        smooth.step(strategies[0], seed=number)
        rough.step(strategies[1], seed=number)
        rough.peers.failures = []
        assert torch.equal(rough.state(), smooth.state())
        for key in smooth.served:
            torch.testing.assert_close(rough.served[key], smooth.served[key], rtol=0, atol=1e-6)
    assert [updates is not None for updates in rough.updates] == [False, True, False]


def test_two_equal_workers_step_as_one_would() -> None:
    worker = FakeWorker()
    local = FakeWorker()
    strategy = AllReduce()
    for number in range(4):
        worker.step(strategy, seed=number)
        for parameter, its in zip(
            local.parameters.values(), worker.parameters.values(), strict=True
        ):
            parameter.grad = its.grad
        local.local_optimizer.step()
    for mine, its in zip(worker.parameters.values(), local.parameters.values(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)


def test_a_parameter_that_nobody_has_a_gradient_for_is_not_stepped() -> None:
    worker = FakeWorker(weight_decay=0.5)
    before = worker.model.bias.detach().clone()
    worker.model.weight.grad = torch.ones(3, 5)
    AllReduce().step(worker)  # type: ignore[arg-type]
    assert torch.equal(worker.model.bias, before)
    assert worker.model.bias.grad is None


def test_the_last_round_is_published_and_so_is_that_of_the_last_member() -> None:
    for wish in ("ends_data", "leaving"):
        worker = FakeWorker()
        setattr(worker, wish, True)
        worker.world = 1 if wish == "leaving" else 2
        worker.step(AllReduce(publish_every=0), seed=1)
        for name, value in worker.served.items():
            torch.testing.assert_close(value, worker.parameters[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "kind", [optim.AdamW, optim.SGD, optim.Adagrad, optim.RMSprop, optim.Adafactor]
)
def test_who_takes_over_a_state_goes_on_as_the_other(kind: type[optim.Optimizer]) -> None:
    workers = [FakeWorker(), FakeWorker()]
    for worker in workers:
        extra = {"momentum": 0.9} if kind is optim.SGD else {}
        worker.local_optimizer = kind(worker.model.parameters(), lr=0.1, **extra)  # type: ignore[call-arg, assignment]
    one, other = workers
    for number in range(3):
        one.step(AllReduce(), seed=number)
    unpack(other, one.state())  # type: ignore[arg-type]
    for worker in workers:
        worker.step(AllReduce(), seed=9)
    assert torch.equal(one.state(), other.state())


def test_many_tensors_as_one_and_back() -> None:
    tensors = [torch.randn(3, 4), torch.tensor(2.0), torch.zeros(0), torch.randn(5).half()]
    assert common_dtype(tensors) is torch.float32
    copies = [torch.zeros_like(tensor) for tensor in tensors]
    scatter(flattened(tensors), copies)
    for copy, tensor in zip(copies, tensors, strict=True):
        assert torch.equal(copy, tensor)
    assert common_dtype([torch.zeros(1, dtype=torch.float64)]) is torch.float64
