"""Blocks written for a checkpoint: what a step may wait for comes first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from elasticps.checkpoint.directory import temporary_path_of
from elasticps.core.ids import BlockId, Round
from elasticps.server import saving
from elasticps.server.hosted import Request
from elasticps.server.saving import Room, Save, Saver
from elasticps.wire.messages import SavedMeta, StateMeta, TensorMeta

BLOCKS = 5


def save_of(block: int, draft: Path, limit: Round | None) -> Save:
    value = torch.full((3 + block,), float(block))
    row = TensorMeta("value", "float32", (3 + block,), value.nbytes)

    def answer(_: Request, __: SavedMeta) -> None:
        raise AssertionError("nobody has asked")

    meta = StateMeta(tensors=(row,), scalars={}, hyper={}, round=Round(7))
    take = lambda: (meta, 9, [value])  # noqa: E731
    return Save(draft.name, BlockId(block), limit, take, answer)


@pytest.mark.parametrize("limit", [Round(7), None])
async def test_each_file_is_fsynced_after_it_is_written_and_has_the_block_as_it_was_taken(
    limit: Round | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: dict[str, bytes] = {}

    def noted(path: Path) -> None:
        durable[path.name] = path.read_bytes()

    monkeypatch.setattr(saving.STORAGE, "sync_file", noted)
    draft = temporary_path_of(tmp_path, Round(7))
    draft.mkdir()
    saves = [save_of(block, draft, limit) for block in range(BLOCKS)]
    async with asyncio.TaskGroup() as tasks:
        saver = Saver(tasks, str(tmp_path))
        for save in saves:
            saver.add(save)
    for block, save in enumerate(saves):
        saved = save.result
        assert saved is not None, save.error
        body = (draft / saved.name).read_bytes()
        assert durable[saved.name] == body
        assert (saved.size, saved.round, saved.version) == (len(body), 7, 9)
        assert saved.xxh128 == xxhash.xxh3_128(body).hexdigest()
        value = load_file(draft / saved.name)["value"]
        assert torch.equal(value, torch.full((3 + block,), float(block)))


def test_a_room_holds_one_block_after_another_of_any_dtypes() -> None:
    room = Room()
    odd = [torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16), torch.tensor(4.0)]
    assert bytes(room.filled(odd)) == b"".join(
        item.reshape(-1).view(torch.uint8).numpy().tobytes() for item in odd
    )
    turned = torch.arange(6.0).view(2, 3).t()
    assert bytes(room.filled([turned])) == turned.contiguous().numpy().tobytes()
    assert bytes(room.filled([torch.empty(0)])) == b""
