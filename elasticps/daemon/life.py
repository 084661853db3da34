"""One life of a worker process, and what is recorded of its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from elasticps.core.audit import Verdict
from elasticps.core.ids import JobKey, JobName, NodeId, WorkerId
from elasticps.core.jobs import GROUP_BROKEN
from elasticps.core.records import Attempts, WorkerRecord, WorkerState
from elasticps.daemon.child import Exit
from elasticps.wire.control_messages import Finished, Progress, Retire
from elasticps.worker.launch import ScriptFailure

NEVER_JOINED = "the script ended without calling elasticps.join()"
NEVER_CLOSED = (
    "the script ended with code 0 without leaving the job, so that nobody knows whether it was"
    " through: use `with elasticps.join() as run:`, or call run.close() at its end"
)
MAX_REASON_CHARS = 2_000
MAX_TRACEBACK_CHARS = 64_000
"""A record of more than 1 MiB could not be written, and its job would never end."""


@dataclass(slots=True, eq=False)
class Life:
    """One life of one worker process.

    ``hung_up`` is set when its connection has closed, and with that all that it said was heard.
    ``retire`` is the word to leave, once it is to go; ``over`` is set when there is nothing to wait
    for any more: it has ended, or is to be stopped at once. ``place`` is its number, from 0, among
    the job's workers here; with ``own_group`` it is not expected to join.
    """

    uid: str
    worker: WorkerId
    job: JobKey
    job_name: JobName
    child: str
    block_bytes: int
    audit: bool
    place: int = 0
    own_group: bool = False
    joined: bool = False
    progress: Progress | None = None
    finished: Finished | None = None
    ended: bool = False
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    retire: Retire | None = None
    retiring: asyncio.Task[None] | None = None
    stepped_at: float = field(default_factory=time.monotonic)

    @property
    def source(self) -> str:
        """Whose its lines are. By the job's key: its name may be a later job's too."""
        return f"{self.job}.{self.uid}"

    def progressed(self, progress: Progress) -> None:
        """What it says of itself; it says the same again while it waits."""
        before = self.progress
        if before is None or (before.round, before.step_s) != (progress.round, progress.step_s):
            self.stepped_at = time.monotonic()
        self.progress = progress


def record_of_end(
    node: NodeId, life: Life, exit_: Exit, failure: ScriptFailure | None, last_words: Sequence[str]
) -> WorkerRecord:
    """What became of a life whose process has ended by itself.

    ``failure`` is what its script has failed with, ``last_words`` what it wrote to stderr last.
    """
    verdict = life.finished.verdict if life.finished else None
    if life.audit and (life.finished is not None or not life.joined):
        verdict = verdict or Verdict()  # it had no optimizer yet: it has pushed nothing
    if life.finished is not None and life.finished.left:
        state, reason, traceback = WorkerState.LEFT, "retired", ""
    elif failure is not None:
        state, reason = _end_by(failure, own_group=life.own_group)
        traceback = failure.traceback
    elif exit_.code == 0 and not life.joined and life.own_group:
        state, reason, traceback = WorkerState.SUCCEEDED, "finished", ""
    elif exit_.code == 0 and not life.joined:
        state, reason, traceback = WorkerState.FAILED, NEVER_JOINED, ""
    elif exit_.code == 0 and life.finished is None:
        state, reason, traceback = WorkerState.FAILED, NEVER_CLOSED, ""
    elif exit_.code == 0:
        state, reason, traceback = WorkerState.SUCCEEDED, "finished", ""
    elif exit_.signal is not None and life.own_group:
        state, traceback = WorkerState.FAILED, ""
        reason = f"{exit_.reason}: {GROUP_BROKEN}"
    elif exit_.signal is not None:
        state, reason, traceback = WorkerState.KILLED, exit_.reason, ""
    else:
        state, traceback = WorkerState.FAILED, "\n".join(last_words)
        reason = ": ".join([exit_.reason, *last_words[-1:]])
    progress = life.progress
    return WorkerRecord(
        node=node,
        state=state,
        reason=shortened(reason, MAX_REASON_CHARS),
        traceback=shortened(traceback, MAX_TRACEBACK_CHARS),
        verdict=verdict,
        round=progress.round if progress else 0,
        metrics={**progress.metrics} if progress else {},
        pushed_bytes=progress.pushed_bytes if progress else 0,
        gradient_bytes=progress.gradient_bytes if progress else 0,
        checkpoint_attempts=progress.checkpoint_attempts if progress else Attempts(),
    )


def _end_by(failure: ScriptFailure, *, own_group: bool) -> tuple[WorkerState, str]:
    if failure.killed and own_group:
        return WorkerState.FAILED, f"{failure.reason}: {GROUP_BROKEN}"
    return WorkerState.KILLED if failure.killed else WorkerState.FAILED, failure.reason


def shortened(text: str, most: int) -> str:
    """``text``, or its beginning and its end with the middle left out."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} ... {len(text) - most} characters ... {text[-(most // 2) :]}"
