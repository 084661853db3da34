"""Which plugins may run in this node's shard server: a stranger's is tried elsewhere first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from elasticps.api.codec_choice import NONE
from elasticps.core.blocks import Model
from elasticps.core.ids import JobKey
from elasticps.core.lending import DYNAMIC
from elasticps.daemon.plugin_check import (
    Trial,
    codec_trial,
    data_policy_trial,
    optimizer_trial,
    rehearse,
)

log = logging.getLogger(__name__)

OURS = "elasticps"


class Rehearsals:
    """A shard server hosts other jobs' blocks, and a plugin that hangs or exits is their end.

    So the daemon tells it of a job once the job's optimizer, codec and data policy have worked in
    other processes. The built-in ones need no rehearsal, and another's is not repeated once it has
    passed.
    """

    def __init__(self, on_verdict: Callable[[], None]) -> None:
        self._on_verdict = on_verdict
        self._verdicts: dict[JobKey, str | None] = {}
        self._passed: set[Trial] = set()
        self._wanted: asyncio.Queue[tuple[JobKey, tuple[Trial, ...]]] = asyncio.Queue()

    def verdict(
        self, job: JobKey, model: Model, codec: str = NONE, data_policy: str = DYNAMIC
    ) -> str | None:
        """Why the job must not be served here; empty: nothing is wrong; None: not known yet."""
        if job not in self._verdicts:
            trials = (optimizer_trial(model), codec_trial(codec), data_policy_trial(data_policy))
            unknown = tuple(
                trial for trial in trials if trial.owners != {OURS} and trial not in self._passed
            )
            self._verdicts[job] = None if unknown else ""
            if unknown:
                self._wanted.put_nowait((job, unknown))
        return self._verdicts[job]

    def keep_only(self, jobs: Collection[JobKey]) -> None:
        """The others have ended."""
        self._verdicts = {job: said for job, said in self._verdicts.items() if job in jobs}

    async def run(self) -> None:
        """Rehearse as it is asked for, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._rehearse_all(*await self._wanted.get()))

    async def _rehearse_all(self, job: JobKey, trials: tuple[Trial, ...]) -> None:
        reason = ""
        for trial in trials:
            reason = reason or await self._reason(trial)
        if reason:
            log.error("job=%s is not served here: %s", job, reason)
        else:
            self._passed.update(trials)
        if job in self._verdicts:
            self._verdicts[job] = reason
        self._on_verdict()

    async def _reason(self, trial: Trial) -> str:
        """Why a shard server must not run it, or nothing."""
        try:
            return (await rehearse(trial)).reason
        except OSError as error:
            return f"{' and '.join(trial.plugins)} could not be tried: {error}"
