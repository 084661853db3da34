"""A job's bulletin: short notes that its workers leave for each other, kept by the ledger.

A note belongs to the worker that wrote it, and goes with it. It is for what changes when the set of
workers does (where a worker listens), never for what changes at every step.
"""

from __future__ import annotations

from collections.abc import Iterable

from elasticps.core.ids import WorkerId

MAX_KEY_BYTES = 64
MAX_NOTE_BYTES = 4096
MAX_NOTES = 8
"""Of one worker. The whole bulletin travels with the ledger to a new replica."""

Notes = dict[WorkerId, dict[str, bytes]]


def objection(notes: Notes, worker: WorkerId, key: str, note: bytes) -> str:
    """Why ``worker`` may not leave this note; empty when it may.

    A note is never changed: a late copy of an earlier one would bring that back.
    """
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        return f"a key of {len(key.encode())} bytes; the limit is 1 to {MAX_KEY_BYTES}"
    if len(note) > MAX_NOTE_BYTES:
        return f"a note of {len(note)} bytes; the limit is {MAX_NOTE_BYTES}"
    mine = notes.get(worker, {})
    if key in mine:
        return "" if mine[key] == note else f"there is another note under {key!r}"
    return f"{MAX_NOTES} notes already, which is the limit" if len(mine) >= MAX_NOTES else ""


def written(notes: Notes, worker: WorkerId, key: str, note: bytes) -> Notes:
    """The notes with this one."""
    return {**notes, worker: {**notes.get(worker, {}), key: note}}


def without(notes: Notes, workers: Iterable[WorkerId]) -> Notes:
    """The notes without those of ``workers``."""
    gone = set(workers)
    return {worker: mine for worker, mine in notes.items() if worker not in gone}


def under(notes: Notes, key: str, workers: Iterable[WorkerId]) -> dict[WorkerId, bytes]:
    """What each of ``workers`` has written under ``key``."""
    return {worker: notes[worker][key] for worker in workers if key in notes.get(worker, {})}
