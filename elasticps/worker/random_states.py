"""The generators of this process, torch's, Python's and NumPy's: taken, put back, seeded anew."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

SEED = "seed"
TORCH = "torch"
CUDA = "cuda-"
PYTHON = "python"
NUMPY = "numpy"


def taken() -> dict[str, torch.Tensor]:
    """The state of each, as bytes; ``seed`` is what torch's was seeded with last."""
    states = {
        SEED: _packed(torch.initial_seed()),
        TORCH: torch.get_rng_state(),
        PYTHON: _packed(random.getstate()),
    }
    numpy = _numpy()
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        states[NUMPY] = _packed([name, keys.tolist(), *rest])
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"{CUDA}{index}"] = state
    return states


def put_back(states: Mapping[str, torch.Tensor]) -> None:
    """Let each go on from its state; one that is not there stays as it is.

    Raises ValueError, TypeError or RuntimeError for a state of another version's generator.
    """
    numpy = _numpy()
    if TORCH in states:
        torch.set_rng_state(states[TORCH])
    if PYTHON in states:
        version, inner, gauss = _unpacked(states[PYTHON])
        random.setstate((version, tuple(inner), gauss))
    if NUMPY in states and numpy is not None:
        numpy.random.set_state(tuple(_unpacked(states[NUMPY])))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"{CUDA}{index}" in states:
                torch.cuda.set_rng_state(states[f"{CUDA}{index}"], index)


def seed_of(states: Mapping[str, torch.Tensor]) -> int:
    """The seed in what ``taken`` has taken."""
    return int(_unpacked(states[SEED])) if SEED in states else 0


def seed_for(seed: int, rank: int, round_: int) -> int:
    """What the worker of this rank seeds with for a round: 63 bits, of another round's no trace."""
    text = f"{seed}/{rank}/{round_}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def seed_all(seed: int) -> None:
    """Seed every generator, CUDA's too."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = _numpy()
    if numpy is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)


def _numpy() -> Any:
    """NumPy where something has imported it: nothing else can have drawn from it."""
    return sys.modules.get("numpy")


def _packed(state: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(msgspec.json.encode(state)), dtype=torch.uint8)


def _unpacked(state: torch.Tensor) -> Any:
    return msgspec.json.decode(state.numpy().tobytes())
