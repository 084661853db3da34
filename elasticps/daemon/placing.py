"""Asking a placement plugin in a process of its own, with a time limit: it may do what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Iterator

import msgspec

from elasticps.core.proposal import Placed, Situation, checked
from elasticps.daemon.output import READ_BYTES, readable
from elasticps.daemon.process import ProcessGroup
from elasticps.placements.question import Answer

log = logging.getLogger(__name__)

LIMIT_S = 10.0
END_S = 1.0
MAX_ANSWER_BYTES = 16 << 20
MAX_LOGGED_BYTES = 4096


async def ask(choice: str, situation: Situation, limit_s: float = LIMIT_S) -> Placed:
    """The proposal of the placement that ``choice`` spells, checked; or why there is none."""
    try:
        async with asyncio.timeout(limit_s):
            body = await _asked(choice, msgspec.msgpack.encode(situation))
        answer = msgspec.msgpack.decode(body, type=Answer)
        return Placed(refusal=answer.error) if answer.error else checked(answer.proposal, situation)
    except TimeoutError:
        return Placed(refusal=f"no answer within {limit_s:g} s")
    except OSError as error:
        return Placed(refusal=f"its process cannot be started: {error.strerror}")
    except (ValueError, msgspec.MsgspecError) as error:  # unsound, or no answer at all
        return Placed(refusal=str(error))


async def _asked(choice: str, question: bytes) -> bytes:
    argv = (sys.executable, "-P", "-m", "elasticps.placements", choice)
    with _file_of(question) as stdin:
        group = ProcessGroup.spawn(argv, os.environ, None, stdin)
    try:
        body, said = await asyncio.gather(
            _read(group.stdout, MAX_ANSWER_BYTES), _read(group.stderr, MAX_LOGGED_BYTES)
        )
        await group.ended()
    finally:
        group.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await group.ended()
        group.close()
    if said:
        log.info("placement %s: %s", choice, said[-MAX_LOGGED_BYTES:].decode(errors="replace"))
    if not body:
        raise ValueError("its process ended without an answer")
    return body


@contextlib.contextmanager
def _file_of(content: bytes) -> Iterator[int]:
    """A file in memory that holds ``content``, at its beginning: nobody waits for its reader."""
    descriptor = os.memfd_create("situation")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def _read(descriptor: int, most: int) -> bytes:
    """All of a pipe up to its end; beyond ``most`` bytes it is read and forgotten."""
    content = bytearray()
    while True:
        await readable(descriptor)
        try:
            chunk = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            continue
        if not chunk:
            return bytes(content)
        content += chunk[: max(0, most - len(content))]
