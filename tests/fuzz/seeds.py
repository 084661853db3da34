"""``python -m tests.fuzz.seeds``: write the inputs that a search begins with.

Frames are those that real servers and workers exchanged, of each kind and direction the first few;
checkpoints are as the product writes them. What a search has found (``find-*``) stays.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import torch

from elasticps.checkpoint.manifest import MANIFEST, UNSEALED
from elasticps.core.ids import BlockId
from elasticps.testing.members import Blueprint
from elasticps.testing.rig import Rig
from elasticps.wire.connection import Connection
from elasticps.wire.frame import (
    FLAG_PAYLOAD_CHECKSUM,
    HEADER_SIZE,
    Header,
    Kind,
    checksum,
    pack,
    unpack,
)
from elasticps.wire.messages import PushMeta, decode
from tests.fuzz import CORPUS
from tests.fuzz.target_checkpoint import MANIFEST_AS_IT_IS, MANIFEST_SEALED, TENSORS
from tests.fuzz.target_wire import DROP_ODD, REPAIR
from tests.support.checkpoints import write_round

OF_A_KIND = 2
SMALL = Blueprint(shapes=((5, 3), (4,), ()), options={"lr": 0.1, "momentum": 0.9})


async def frames() -> list[tuple[str, bytes]]:
    """What a short training sends, its servers, its workers and who tells them the plan."""
    seen: Counter[str] = Counter()
    kept: list[tuple[str, bytes]] = []
    write = Connection._write

    def tapped(
        self: Connection, header: Header, number: int, meta: bytes, payload: Any = None
    ) -> None:
        body = b"" if payload is None else bytes(memoryview(payload).cast("B"))
        name = f"{header.kind.name.lower()}-{'reply' if header.is_reply else 'request'}"
        seen[name] += 1
        if seen[name] <= OF_A_KIND and len(meta) + len(body) < 2000:
            flags = header.flags | (FLAG_PAYLOAD_CHECKSUM if body else 0)
            filled = msgspec.structs.replace(
                header,
                flags=flags,
                request=number,
                payload_length=len(body),
                payload_checksum=checksum(body),
            )
            kept.append((f"{name}-{seen[name]}", pack(filled, meta) + body))
        write(self, header, number, meta, payload)

    Connection._write = tapped  # type: ignore[method-assign]
    try:
        for local in (False, True):
            await train(local)
    finally:
        Connection._write = write  # type: ignore[method-assign]
    return kept


async def train(local: bool) -> None:
    """``local``: with shared memory, so that no frame has a payload."""
    async with Rig(servers=2, start_workers=1, replicas=2, local=local) as rig:
        (member,) = await rig.workers(1, SMALL)
        for seed in range(3):
            await member.step(SMALL.random(seed))
        await member.exchange.states()
        await member.exchange.audit()
        await rig.move(BlockId(1), *reversed(rig.entries[BlockId(1)].holders))
        for block, server in zip(rig.entries, (*rig.servers, *rig.servers), strict=False):
            await rig.move(block, server)  # apart, they are asked one by one
        for seed in range(3):
            await member.step(SMALL.random(seed))


def write_wire(corpus: Path) -> None:
    kept = asyncio.run(frames())
    for name, frame in kept:
        (corpus / name).write_bytes(bytes([REPAIR, 1, 40]) + frame)
    together = b"".join(frame for _, frame in kept[:6])
    (corpus / "several").write_bytes(bytes([0, 3, 0, 90, 200]) + together)
    (corpus / "several-dropped").write_bytes(bytes([REPAIR | DROP_ODD, 0]) + together)
    (corpus / "cut-off").write_bytes(bytes([0, 0]) + together[:-3])
    write_broken(corpus, dict(kept)["push-request-1"])


def write_broken(corpus: Path, push: bytes) -> None:
    """What no search comes to soon: nearly right, and wrong in one place."""
    header = unpack(push)
    meta = push[HEADER_SIZE : HEADER_SIZE + header.meta_length]
    options = push_options(meta)
    broken = {
        "header-checksum": (0, push[:50] + b"\x01" + push[51:]),
        "payload-checksum": (0, push[:-1] + bytes([push[-1] ^ 1])),
        "too-long": (REPAIR, push[:64] + (1 << 20).to_bytes(8, "little") + push[72:]),
        "deep-option": (REPAIR, framed(meta, options, b"\x81\xa2lr" + b"\x91" * 3000 + b"\xc0")),
        "no-utf8": (REPAIR, framed(meta, options, b"\x81\xa2\xff\xfe\x01")),
    }
    for name, (switches, frame) in broken.items():
        (corpus / f"broken-{name}").write_bytes(bytes([switches, 0]) + frame + push)


def push_options(meta: bytes) -> bytes:
    """The bytes of a push's options within its meta."""
    return msgspec.msgpack.encode(decode(meta, PushMeta).hyper)


def framed(meta: bytes, options: bytes, others: bytes) -> bytes:
    return pack(Header(Kind.PUSH), meta.replace(options, others, 1))


def write_checkpoint(corpus: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = write_round(Path(folder), 4)
        manifest = json.loads((place / MANIFEST).read_text())
        values = (place / "values.safetensors").read_bytes()
    unsealed = json.dumps({**manifest, "digest": UNSEALED}, indent=1).encode()
    (corpus / "manifest").write_bytes(bytes([MANIFEST_SEALED]) + unsealed)
    (corpus / "manifest-unsealed").write_bytes(bytes([MANIFEST_AS_IT_IS]) + unsealed)
    (corpus / "tensors").write_bytes(bytes([TENSORS]) + values)


if __name__ == "__main__":
    torch.manual_seed(0)
    for made, write in (("wire", write_wire), ("checkpoint", write_checkpoint)):
        (CORPUS / made).mkdir(parents=True, exist_ok=True)
        write(CORPUS / made)
        print(f"{made}: {len(list((CORPUS / made).iterdir()))} inputs")  # noqa: T201
