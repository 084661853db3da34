"""What the main worker logs, kept: JSON lines in a folder, and TensorBoard where it is installed.

The folder is ``ELASTICPS_METRICS_DIR/JOB``. Of all workers one writes, the main one; where it dies
the next goes on, on its own node.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

log = logging.getLogger(__name__)

METRICS_VARIABLE = "ELASTICPS_METRICS_DIR"
FILE = "metrics.jsonl"


class MetricsFile:
    """Opened by the first line that is written; a line is ``unix_s``, ``round`` and the numbers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: TextIO | None = None
        self._board: Any = None
        self._failed = False

    def write(self, round_: int, metrics: Mapping[str, float]) -> None:
        """Append one line. A folder that cannot be written is warned of once, and ends no job."""
        if self._failed:
            return
        try:
            self._append(round_, metrics)
        except OSError as error:
            self._failed = True
            log.warning("metrics are not kept: %s", error)

    def _append(self, round_: int, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = (self._directory / FILE).open("a", buffering=1, encoding="utf-8")
            self._board = _board(self._directory)
        finite = {key: item if math.isfinite(item) else None for key, item in metrics.items()}
        line = {"unix_s": round(time.time(), 3), "round": round_, **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._board is not None:
            for key, item in metrics.items():
                self._board.add_scalar(key, item, round_)

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None


def _board(directory: Path) -> Any:
    """A TensorBoard writer; None where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    return importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(directory))
