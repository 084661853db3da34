"""What a block's primary makes of the gradients that wait for a round."""

from __future__ import annotations

import torch

from elasticps.core.ids import WorkerId
from elasticps.server.staging import Staged, Staging


def test_a_round_takes_the_options_of_who_has_been_there_longest() -> None:
    """The lowest rank, not the lowest id: a worker that was started early may have joined late."""
    early, late = WorkerId(10), WorkerId(12)
    staging = Staging()
    staging.gradients[early] = Staged(torch.tensor([1.0]), 1.0, {"lr": 9.0}, rank=1)
    staging.gradients[late] = Staged(torch.tensor([3.0]), 3.0, {"lr": 0.1}, rank=0)
    prepared, waiting = staging.taken()
    assert prepared.hyper == {"lr": 0.1}
    assert prepared.gradient is not None
    assert prepared.gradient.tolist() == [2.5]
    assert waiting == []
    assert staging.gradients == {}


def test_a_mean_is_the_same_to_the_bit_whatever_the_ids_of_its_ranks() -> None:
    """As a resumed job's workers have others, in an order of their own."""
    random = torch.Generator().manual_seed(1)
    gradients = [torch.randn(1000, generator=random) for _ in range(3)]

    def mean(ids: tuple[int, ...]) -> torch.Tensor:
        staging = Staging()
        for rank, number in enumerate(ids):
            staged = Staged(gradients[rank].clone(), 6.0 + rank, {}, rank=rank)
            staging.gradients[WorkerId(number)] = staged
        prepared, _ = staging.taken()
        assert prepared.gradient is not None
        return prepared.gradient

    assert torch.equal(mean((10, 12, 14)), mean((33, 25, 29)))
