"""How far etcd's history was seen to go. An etcd that is behind that has lost what it acknowledged.

It was restored from a backup, or began anew. What is decided by such data contradicts what nodes
have been told already, so a store that has met it answers nothing any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

from elasticps.errors import StoreRolledBack

HINT = (
    "stop the daemons on all nodes, then start them again: "
    "jobs that ran are over, and can be resumed from their last checkpoints"
)


class History:
    """``revision`` is the highest that any answer has told. Members may lag behind it.

    ``broken`` is set once an answer has shown that etcd's history is not the one that was seen.
    """

    def __init__(self) -> None:
        self.revision = 0
        self.broken = asyncio.Event()
        self._cluster_id = 0
        self._what = ""

    def take(self, header: Any, seen: int) -> None:
        """Learn from an answer's header. ``seen`` is ``revision`` as of when it was asked for.

        Raises StoreRolledBack for a lower revision than that, or when another etcd has answered.
        """
        if header.cluster_id and self._cluster_id not in (0, header.cluster_id):
            self._break(
                f"another etcd answers than before (cluster {header.cluster_id:x} after "
                f"{self._cluster_id:x})"
            )
        elif self.is_behind(header, seen):
            self._break(
                "etcd's data is older than what this node has already seen "
                f"(revision {header.revision} < {seen})"
            )
        self.raise_if_broken()
        self._cluster_id = self._cluster_id or header.cluster_id
        self.revision = max(self.revision, header.revision)

    @staticmethod
    def is_behind(header: Any, seen: int) -> bool:
        """Not every kind of answer tells a revision."""
        revision: int = header.revision
        return 0 < revision < seen

    def raise_if_broken(self) -> None:
        if self.broken.is_set():
            raise self.error()

    def error(self) -> StoreRolledBack:
        """What to raise once it is broken."""
        return StoreRolledBack(f"{self._what}: was it restored from a backup?", hint=HINT)

    def _break(self, what: str) -> None:
        self._what = self._what or what
        self.broken.set()
