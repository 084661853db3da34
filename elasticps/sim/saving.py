"""A simulated block's part in a checkpoint: ``server/saving.py`` without a disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from elasticps.core.ids import Round
from elasticps.sim.messages import Request, Saved, Status


@dataclass(slots=True, eq=False)
class Save:
    """``limit``: the round that the block must not go past before it is copied; None: any."""

    draft: str
    limit: Round | None
    take: Callable[[], Saved]
    answer: Callable[[Request, Saved], None]
    copied: bool = False
    result: Saved | None = None
    asking: list[Request] = field(default_factory=list)
    held: list[tuple[Request, Callable[[], None]]] = field(default_factory=list)

    def holds(self, round_: Round) -> bool:
        """Must a request that proves ``round_`` wait?"""
        return self.limit is not None and not self.copied and round_ > self.limit

    def ask(self, request: Request) -> None:
        """Answer with the file, when it is written."""
        if self.result is not None:
            self.answer(request, self.result)
        else:
            self.asking.append(request)

    def write(self) -> None:
        """Copy the block, let go on what has waited for that, and answer who asks for the file."""
        if self.copied:  # given up meanwhile
            return
        self.result = self.take()
        self.copied = True
        held, self.held = self.held, []
        for _, go_on in held:
            go_on()
        asking, self.asking = self.asking, []
        for request in asking:
            self.ask(request)

    def give_up(self) -> None:
        """This server does not lead the block any more."""
        self.copied = True
        waiting = [*self.asking, *(request for request, _ in self.held)]
        self.asking, self.held = [], []
        for request in waiting:
            request.answer(Status.FENCED)
