"""Blocks written for a checkpoint: what a step may wait for comes first."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
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
async def test_all_blocks_are_written_before_one_is_hashed_and_each_is_as_it_was_taken(
    limit: Round | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(name: str) -> None:
        real = getattr(saving, name)

        def call(*work: Any) -> Any:
            done.append(name)
            return real(*work)

        monkeypatch.setattr(saving, name, call)

    noted("write_block")
    noted("settle_block")
    draft = temporary_path_of(tmp_path, Round(7))
    draft.mkdir()
    saves = [save_of(block, draft, limit) for block in range(BLOCKS)]
    async with asyncio.TaskGroup() as tasks:
        saver = Saver(tasks, str(tmp_path))
        for save in saves:
            saver.add(save)
    assert done == ["write_block"] * BLOCKS + ["settle_block"] * BLOCKS
    for block, save in enumerate(saves):
        saved = save.result
        assert saved is not None, save.error
        body = (draft / saved.name).read_bytes()
        assert (saved.size, saved.round, saved.version) == (len(body), 7, 9)
        assert saved.sha256 == hashlib.sha256(body).hexdigest()
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
