"""Can a job have its checkpoints at a URL? Asked in a process of its own, by ``daemon.reachable``:
a library that waits for a store may take minutes to give up.

``python -m elasticps.checkpoint.reach FIELD URL`` writes what is wrong as JSON, or nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from elasticps.checkpoint.directory import newest
from elasticps.checkpoint.remote import OBJECT_STORES
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import Url, place_of
from elasticps.errors import CheckpointError

RESUME = "resume"


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """Why a place will not do."""

    what: str
    limit: str | None = None


def what_is_wrong(field: str, place: Path) -> Wrong | None:
    """None for a place that can be looked at, and has a checkpoint where it is to ``resume``."""
    try:
        if field == RESUME:
            newest(place)
        elif not STORAGE.exists(place) and not STORAGE.exists(_bucket_of(place)):
            return Wrong(what="there is no such bucket", limit="a bucket that is there")
    except CheckpointError as error:
        return Wrong(what=error.what, limit=error.limit)
    except OSError as error:
        return Wrong(what=f"cannot be used: {error.strerror}")
    return None


def _bucket_of(place: Path) -> Path:
    """What is not made with the first object in it; elsewhere directories are, from the root."""
    kept = 2 if place.parts[0].rstrip(":") in OBJECT_STORES else 1
    return Url(*place.parts[:kept])


def main(field: str, url: str) -> None:
    found = what_is_wrong(field, place_of(url))
    if found is not None:
        sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main(*sys.argv[1:3])
