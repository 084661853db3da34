"""Server-sent events as they come off a connection: bytes in, frames out (HTML standard, 9.2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One event of a stream. ``id`` is the last one given so far: what to resume from."""

    event: str
    data: str
    id: str | None


class FrameParser:
    """Feed it what is read, however it is cut. A comment or an id alone makes no frame.

    ``last_id`` is that of what has come whole.
    """

    def __init__(self) -> None:
        self.last_id: str | None = None
        self._rest = b""
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        frames = []
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            frame = self._take(line.rstrip(b"\r").decode(errors="replace"))
            if frame is not None:
                frames.append(frame)
        return frames

    def _take(self, line: str) -> Frame | None:
        if not line:
            return self._ended()
        field, _, text = line.partition(":")
        text = text.removeprefix(" ")
        match field:
            case "event":
                self._event = text
            case "data":
                self._data.append(text)
            case "id":
                self._id = text
        return None

    def _ended(self) -> Frame | None:
        event, lines = self._event, self._data
        self._event, self._data, self.last_id = "", [], self._id
        if not lines:
            return None
        return Frame(event=event or "message", data="\n".join(lines), id=self.last_id)
