"""Memory for payloads: used again once nobody holds it, and let go of when it lies idle."""

from __future__ import annotations

import torch

from elasticps.server.landing import STEP_BYTES, Landing
from elasticps.wire.tensors import bytes_of

SIZE = 2 * STEP_BYTES


def test_memory_is_used_again_only_when_nothing_lies_in_it() -> None:
    landing = Landing()
    landed = landing.take(SIZE - 4)
    address = landed.data_ptr()
    gradient = landed.view(torch.float32)[5:]
    on_its_way = bytes_of(gradient)
    del landed
    assert landing.take(SIZE - 4).data_ptr() != address
    del gradient
    assert landing.take(SIZE - 4).data_ptr() != address
    del on_its_way
    other = landing.take(SIZE)
    assert (other.data_ptr(), other.numel()) == (address, SIZE)


def test_what_lies_idle_is_let_go_of() -> None:
    landing = Landing()
    held = [landing.take(SIZE) for _ in range(3)]
    held.clear()
    landing.trim()
    assert landing.nbytes_free == 3 * SIZE
    held = [landing.take(SIZE)]
    held.clear()
    landing.trim()
    assert landing.nbytes_free == SIZE, "one at a time was needed"
    landing.trim()
    landing.trim()
    assert not landing.nbytes_free
    assert not landing._sizes


def test_what_is_out_while_its_size_is_forgotten_comes_back_to_nobody() -> None:
    landing = Landing()
    held = landing.take(SIZE)
    for _ in range(3):
        landing.trim()
    held.fill_(1)
    del held
    assert not landing.nbytes_free
