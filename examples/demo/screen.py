"""What the demo shows while it runs: a live view on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_PERIOD_S = 1.0
EVENTS_SHOWN = 8


class Screen:
    """``update`` with each status of the cluster, ``say`` what happens."""

    def __init__(self) -> None:
        self.total_rounds: int | None = None
        self._started = time.monotonic()
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=4) if _is_terminal() else None
        self._events: list[str] = []
        self._status: dict[str, Any] = {}
        self._printed_at = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        line = f"{self._elapsed():5.1f} s  {text}"
        self._events.append(line)
        if self._live:
            self._live.update(self._view())
        else:
            print(line, flush=True)

    def update(self, status: dict[str, Any]) -> None:
        self._status = status
        if self._live:
            self._live.update(self._view())
        elif time.monotonic() - self._printed_at >= PLAIN_PERIOD_S and _job(status):
            self._printed_at = time.monotonic()
            print(f"{self._elapsed():5.1f} s  {self._line(_job(status))}", flush=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _line(self, job: dict[str, Any]) -> str:
        done = job["round"] or 0
        loss = job["metrics"].get("loss")
        text = f"round {done:4d}" + (f" of {self.total_rounds}" if self.total_rounds else "")
        text += f"  loss {loss:.4f}" if loss is not None else f"  {job['reason']}"
        blocks = "  ".join(f"{node}: {count}" for node, count in job["blocks_by_node"].items())
        return text + (f"  blocks {blocks}" if blocks else "")

    def _view(self) -> Group:
        job = _job(self._status)
        nodes = Table("node", "state", "blocks led", "workers", box=None, pad_edge=False)
        for node in self._status.get("nodes", []):
            name = node["node"] + (" (leader)" if node["leader"] else "")
            workers = ", ".join(node["workers"]) or "-"
            nodes.add_row(name, node["state"], str(node["leads"]), workers)
        bar = ProgressBar(total=self.total_rounds, completed=job.get("round") or 0)
        line = self._line(job) if job else "starting"
        events = Text("\n".join(self._events[-EVENTS_SHOWN:]))
        return Group(Text(line), bar, nodes, events)


def _job(status: dict[str, Any]) -> dict[str, Any]:
    jobs: list[dict[str, Any]] = status.get("jobs", [])
    return jobs[-1] if jobs else {}


def _is_terminal() -> bool:
    return sys.stdout.isatty()
