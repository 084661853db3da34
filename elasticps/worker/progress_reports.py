"""What a worker's daemon is told of its steps now and then, and how long they take."""

from __future__ import annotations

import time

from elasticps.core.ids import Round
from elasticps.wire.control_messages import Progress
from elasticps.worker.agent import Agent
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.membership import Membership
from elasticps.worker.stepping import Stepping

PROGRESS_PERIOD_S = 0.2


class ProgressReports:
    """``metrics`` are the script's newest numbers. There are none before ``member`` is set."""

    def __init__(self, loop: DataLoop, agent: Agent, membership: Membership) -> None:
        self.member: Stepping | None = None
        self.metrics: dict[str, float] = {}
        self._loop = loop
        self._agent = agent
        self._membership = membership
        self._told_at = 0.0
        self._waits_for = ""
        self._stepped_at = time.monotonic()
        self._step_s = self._compute_s = 0.0

    @property
    def computing_s(self) -> float:
        """How long the step under way has computed."""
        return time.monotonic() - self._stepped_at

    def step_begins(self) -> None:
        """What came before was no part of a step."""
        self._stepped_at = time.monotonic()

    def exchange_begins(self) -> None:
        """All that the step was to compute is computed."""
        self._compute_s = self.computing_s

    def step_ends(self) -> None:
        """Count the step, and tell when the last time is a while ago."""
        now = time.monotonic()
        self._step_s, self._stepped_at = now - self._stepped_at, now
        if now - self._told_at >= PROGRESS_PERIOD_S:
            self._told_at = now
            self._loop.call(self.tell())

    def hurry(self) -> None:
        """Tell at the end of this step."""
        self._told_at = 0.0

    def wait_for(self, why: str) -> None:
        """Tell now what the worker waits for; empty: nothing any more."""
        self._waits_for = why
        self._loop.call(self.tell())

    async def tell(self) -> None:
        """On the data loop."""
        member = self.member
        if member is not None and member.turn is not None and member.round:
            turn, round_ = member.turn, Round(member.round)
            encoder, checkpoints = self._membership.exchange.encoder, self._membership.checkpoints
            among_workers = self._membership.peer_traffic
            self._agent.progress(
                Progress(
                    round=round_,
                    generation=turn.generation,
                    rank=turn.rank,
                    world=turn.world,
                    metrics={**self.metrics},
                    step_s=self._step_s,
                    compute_s=self._compute_s,
                    pushed_bytes=encoder.pushed_bytes,
                    gradient_bytes=encoder.gradient_bytes,
                    checkpoint=checkpoints.report,
                    checkpoint_attempts=checkpoints.attempts,
                    waits_for=self._waits_for,
                    transport=self._membership.exchange.transport,
                    peer_sent=among_workers.sent,
                    peer_received=among_workers.received,
                )
            )
