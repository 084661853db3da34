"""Which optimizers may run in this node's shard server: a stranger's is tried elsewhere first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

import msgspec

from elasticps.api.plugins import OPTIMIZERS, discover
from elasticps.core.blocks import Model
from elasticps.core.ids import JobKey
from elasticps.core.rehearsal import in_small
from elasticps.daemon.plugin_check import rehearse

log = logging.getLogger(__name__)

OURS = "elasticps"


class Rehearsals:
    """A shard server hosts other jobs' blocks, and an optimizer that hangs or exits is their end.

    So the daemon tells it of a job once the job's optimizer has stepped in another process. The
    built-in ones need no rehearsal, and another's is not repeated once it has passed.
    """

    def __init__(self, on_verdict: Callable[[], None]) -> None:
        self._on_verdict = on_verdict
        self._verdicts: dict[JobKey, str | None] = {}
        self._passed: set[bytes] = set()
        self._wanted: asyncio.Queue[tuple[JobKey, Model]] = asyncio.Queue()

    def verdict(self, job: JobKey, model: Model) -> str | None:
        """Why the job must not be served here; empty: nothing is wrong; None: not known yet."""
        if job not in self._verdicts:
            known = _is_ours(model.optimizer) or _trial(model) in self._passed
            self._verdicts[job] = "" if known else None
            if not known:
                self._wanted.put_nowait((job, model))
        return self._verdicts[job]

    def keep_only(self, jobs: Collection[JobKey]) -> None:
        """The others have ended."""
        self._verdicts = {job: said for job, said in self._verdicts.items() if job in jobs}

    async def run(self) -> None:
        """Rehearse as it is asked for, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._rehearse(*await self._wanted.get()))

    async def _rehearse(self, job: JobKey, model: Model) -> None:
        try:
            reason = (await rehearse(model)).reason
        except OSError as error:
            reason = f"optimizer {model.optimizer} could not be tried: {error}"
        if reason:
            log.error("job=%s is not served here: %s", job, reason)
        else:
            self._passed.add(_trial(model))
        if job in self._verdicts:
            self._verdicts[job] = reason
        self._on_verdict()


def _is_ours(name: str) -> bool:
    owners = {plugin.distribution for plugin in discover(OPTIMIZERS) if plugin.name == name}
    return owners == {OURS}


def _trial(model: Model) -> bytes:
    return msgspec.msgpack.encode(in_small(model))
