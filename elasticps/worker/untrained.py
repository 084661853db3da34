"""What a job does not serve, frozen parameters and buffers: it must begin equal in every worker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
import xxhash

from elasticps.core.blocks import MOST_UNTRAINED, Model, Untrained
from elasticps.errors import UsageError
from elasticps.wire.tensors import bytes_of


def untrained_of(
    model: torch.nn.Module, trained: Sequence[tuple[str, torch.Tensor]]
) -> tuple[Untrained, ...]:
    """Every parameter and buffer of ``model`` that is not among ``trained``, with a running hash
    (xxh3) of the names and values up to it."""
    served = {id(tensor) for _, tensor in trained}
    digest = xxhash.xxh3_64()
    rows = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in served:
            digest.update(name.encode())
            digest.update(bytes_of(tensor.detach().cpu().contiguous()))
            kind = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            rows.append(Untrained(name, kind, digest.hexdigest()))
    return tuple(rows)


def fingerprint(rows: Sequence[Untrained]) -> str:
    """That of all of them."""
    return rows[-1].print if rows else xxhash.xxh3_64().hexdigest()


def check_untrained(known: Model, mine: Model) -> None:
    """Raise UsageError, naming the first difference, where they do not begin equal."""
    if known.untrained == mine.untrained:
        return
    raise UsageError(
        "this worker's frozen parameters and buffers do not begin as those of the job's first"
        f" worker: {_difference(known.untrained_rows, mine.untrained_rows)}",
        field="untrained",
        limit="what the job does not train begins equal in all workers",
        hint="seed torch before the model is made, or load these values from one file in every"
        " worker; where the job resumes a checkpoint it goes on from the checkpoint's own",
    )


def _difference(theirs: Sequence[Untrained], ours: Sequence[Untrained]) -> str:
    for there, here in zip_longest(theirs, ours):
        if there is None or here is None or (there.name, there.kind) != (here.name, here.kind):
            return f"{_told(there)} there, {_told(here)} here"
        if there.print != here.print:
            return f"{_told(here)} has other values there than here; what follows it may too"
    return f"one that follows the first {MOST_UNTRAINED}"


def _told(row: Untrained | None) -> str:
    return "no more" if row is None else f"{row.name} {row.kind}"
