"""A node's wall clock that the campaign can set, where libfaketime is installed."""

from __future__ import annotations

from pathlib import Path

PLACES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")


def find_library() -> Path | None:
    found = [path for place in PLACES for path in Path("/").glob(place.lstrip("/"))]
    return found[0] if found else None


class Clock:
    """The wall clock of one node's processes. Their monotonic clock is the machine's."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.prefix = (
            "env",
            f"LD_PRELOAD={library}",
            f"FAKETIME_TIMESTAMP_FILE={file}",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "FAKETIME_NO_CACHE=1",
        )
        self.jump(0)

    def jump(self, offset_s: int) -> None:
        """From now on it is as many seconds ahead of the machine's."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}\n")
        fresh.rename(self._file)
