"""``python -m tests.support.fake_run API MARKS ARGS``: the command line on a fake local cluster.

The cluster is a ``FakeApi`` that the test serves; MARKS is a file that gets a line whenever the
cluster is opened or closed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from elasticps.cli.main import main

API, MARKS = sys.argv[1], Path(sys.argv[2])


class FakeCluster:
    def __init__(self, **options: Any) -> None:
        self.api = API
        self._mark(f"made {sorted(options.items())}")

    async def __aenter__(self) -> Self:
        self._mark("opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._mark("closed")

    async def broken(self) -> str:
        """Never: the fake has nothing that could break."""
        await asyncio.Event().wait()
        return ""

    def _mark(self, text: str) -> None:
        with MARKS.open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    module = ModuleType("elasticps.daemon.local_cluster")
    module.LocalCluster = FakeCluster  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    sys.exit(main(sys.argv[3:]))
