"""A group's requests on a simulated server, and the one answer to them: ``server/group.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elasticps.sim.messages import Message, Request, Status

NOT_YET = Status.BEHIND
Answered = tuple[Status, Any]


class Group:
    """Collects the answers; ``begun`` says that each of its requests has been made."""

    def __init__(self, request: Request, pieces: tuple[Message, ...]) -> None:
        self.requests = [
            PieceRequest(request.network, request.connection, request.number, piece, self, index)
            for index, piece in enumerate(pieces)
        ]
        self._request = request
        self._answers: list[Answered] = [(NOT_YET, None)] * len(pieces)
        self._left = len(pieces)
        self._is_refused = self._is_begun = self._is_over = False

    def begun(self) -> None:
        self._is_begun = True
        self._end()

    def answered(self, index: int, status: Status, body: Any) -> None:
        if self._is_over:
            return
        self._answers[index] = status, body
        self._left -= 1
        self._is_refused |= status is not Status.OK
        self._end()

    def _end(self) -> None:
        """Answer, if it is time: one refusal ends it."""
        if self._is_over or not self._is_begun or not self._may_end:
            return
        self._is_over = True
        self._request.answer(Status.OK, tuple(self._answers))

    @property
    def _may_end(self) -> bool:
        return not self._left or self._is_refused


@dataclass(slots=True, eq=False)
class PieceRequest(Request):
    """One block's request of a group."""

    group: Group
    index: int

    def answer(self, status: Status, body: Any = None) -> None:
        self.group.answered(self.index, status, body)
