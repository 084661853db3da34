"""What is decoded and of the right types may still be nothing that elasticps has written.

Everybody who reads etcd, or a worker's word, asks here first: what passes breaks nobody's
arithmetic later. All of it raises UsageError, naming field and limit.
"""

from __future__ import annotations

import math

from elasticps.core.blocks import Model, check_model
from elasticps.core.consistency import check_guarantees, in_range
from elasticps.core.ids import NodeId, node_of
from elasticps.core.plan import PART_BLOCKS, Entry
from elasticps.core.records import JobSpec, NodeRecord
from elasticps.errors import UsageError

MAX_BLOCKS = 1 << 22
"""16 TiB of blocks of the default size."""
MAX_NESTED = 8
MAX_COUNT = 1 << 40


def check_described(model: Model) -> None:
    """A model that can be served, cut into a number of blocks that can be planned."""
    check_model(model)
    blocks = sum(
        -(-parameter.numel * parameter.kept_width // model.block_bytes)
        for parameter in model.parameters
        if model.elementwise
    )
    if blocks > MAX_BLOCKS:
        raise UsageError(
            f"a model of {blocks} blocks", field="block_bytes", limit=f"{MAX_BLOCKS} blocks"
        )
    for options in (model.options, *model.groups):
        _check_plain("options", options, MAX_NESTED)


def _check_plain(field: str, value: object, levels: int) -> None:
    """What JSON and the wire both have."""
    if levels and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        inner: list[object] = list(value.values())
    elif levels and isinstance(value, list | tuple):
        inner = list(value)
    elif value is None or isinstance(value, bool | int | float | str):
        return
    else:
        raise UsageError(
            f"a {type(value).__name__} among the optimizer's options",
            field=field,
            limit="numbers, texts, None, and lists of them",
        )
    for item in inner:
        _check_plain(field, item, levels - 1)


def check_spec(spec: JobSpec) -> None:
    in_range("start_workers", spec.start_workers, 1, MAX_COUNT)
    in_range("max_workers", spec.max_workers, 0, MAX_COUNT)
    check_guarantees(spec, spec.start_workers)


def check_node(record: NodeRecord, node: NodeId) -> None:
    """``node`` is the one that its key names."""
    if record.node != node:
        raise UsageError(f"it calls itself {record.node!r}", field="node", limit=node)
    if not (math.isfinite(record.weight) and record.weight > 0):
        raise UsageError(f"weight {record.weight}", field="weight", limit="finite and above 0")
    in_range("worker_slots", record.worker_slots, 0, MAX_COUNT)
    for server in record.servers:
        if node_of(server.server) != node:
            raise UsageError(f"a server {server.server!r}", field="servers", limit=f"{node}/...")


def check_part(part: int, entries: tuple[Entry, ...], revision: int) -> None:
    """``revision`` is that of the write: no epoch in it can be later."""
    first = part * PART_BLOCKS
    if not 0 < len(entries) <= PART_BLOCKS or entries[0].block != first:
        begins = entries[0].block if entries else "none"
        raise UsageError(
            f"{len(entries)} blocks from {begins} on",
            field="first",
            limit=f"at most {PART_BLOCKS}, from {first} on",
        )
    for entry in entries:
        if max(entry.epoch, entry.since) > revision:
            raise UsageError(
                f"block {entry.block} has epoch {max(entry.epoch, entry.since)}",
                field="epoch",
                limit=f"revision {revision}",
            )
        if len(set(entry.servers)) < len(entry.servers):
            raise UsageError(f"block {entry.block} is twice on a server", field="learners")
