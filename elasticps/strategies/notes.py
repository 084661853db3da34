"""What workers of a pipeline put on their shelves for each other, by name, in the round under way.

A round that is begun anew is so by another generation: what was put before is not meant any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec
import torch

from elasticps.api.strategy import Worker

Note = TypeVar("Note", bound=msgspec.Struct)


def key_of(worker: Worker, what: str) -> str:
    return f"{worker.generation}/{what}"


def put(worker: Worker, what: str, tensor: torch.Tensor) -> None:
    worker.peers.put(key_of(worker, what), tensor)


def fetch(worker: Worker, rank: int, what: str) -> torch.Tensor:
    return worker.peers.fetch(rank, key_of(worker, what))


def gather(
    worker: Worker, ranks: Iterable[int], what: str, mine: torch.Tensor
) -> list[torch.Tensor]:
    """What each of ``ranks`` has put, in their order; ``mine`` is this worker's own."""
    wanted = dict.fromkeys((rank for rank in ranks if rank != worker.rank), key_of(worker, what))
    theirs = worker.peers.fetch_all(wanted)
    return [mine if rank == worker.rank else theirs[rank] for rank in ranks]


def tell(worker: Worker, what: str, note: msgspec.Struct) -> None:
    put(worker, what, torch.frombuffer(bytearray(msgspec.json.encode(note)), dtype=torch.uint8))


def hear(worker: Worker, rank: int, what: str, kind: type[Note]) -> Note:
    return msgspec.json.decode(fetch(worker, rank, what).numpy().tobytes(), type=kind)
