"""A disk that is full, or fails, while a job writes its checkpoints to it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from itertools import count
from typing import TypeVar

from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.snapshot import read
from elasticps.cli.answers import Checkpoint, Job
from elasticps.cli.client import watch
from elasticps.core.consistency import Guarantees
from elasticps.core.ids import Round
from tests.chaos import strace
from tests.chaos.cluster import WAIT_S, ChaosError
from tests.chaos.disk import full
from tests.chaos.scene import Done, Scene, done

LOOK_S = 0.1
REFUSALS = 3
KEPT = Guarantees().checkpoint_keep

Found = TypeVar("Found")


async def fill_disk(scene: Scene) -> Done:
    """There is room for a part of a checkpoint alone, each time another; then for all of it."""
    before = await _written(scene)
    size = sum(file.stat().st_size for file in complete(scene.saved)[0][1].iterdir())
    rooms = [0, *(scene.random.randrange(size) for _ in range(REFUSALS - 1))]
    for room in rooms:
        with full(scene.saved.parent, room):
            answer = await _asked(scene)
            await _check_refused(scene, answer, errno.ENOSPC, before)
            await _trains(scene)
    await _written(scene)
    return done(f"checkpoints of {size} bytes had room for {rooms}, and failed")


async def fail_fsync(scene: Scene) -> Done:
    """Of one checkpoint the first fsync fails, of the next the second, until there are no more."""
    before = await _written(scene)
    nodes = sorted(scene.cluster.expected)
    workers = [pid for node in nodes for pid in scene.cluster.pids(node).workers]
    for number in count(1):
        what = f"fsync:error=EIO:when={number}"
        async with strace.failing(scene.cluster, workers, what) as log:
            answer = await _asked(scene)
        if "INJECTED" not in log.read_text():
            break
        await _check_refused(scene, answer, errno.EIO, before)
    if number == 1:
        raise ChaosError("a checkpoint was made without an fsync")
    await _written(scene)
    return done(f"each of {number - 1} fsyncs of a checkpoint failed in turn")


async def _written(scene: Scene) -> set[Round]:
    """Have one made; the rounds of those that are there."""
    answer = await _asked(scene)
    if answer.error:
        raise ChaosError(f"no checkpoint: {answer.error}")
    found = await asyncio.to_thread(_whole, scene)
    if max(found) != answer.round:
        raise ChaosError(f"the checkpoint of round {answer.round} is not among {sorted(found)}")
    others = [path.name for path in scene.saved.iterdir() if path.name.startswith(".")]
    if others:
        raise ChaosError(f"beside the checkpoints there is still {others}")
    return found


async def _check_refused(scene: Scene, answer: Checkpoint, why: int, before: set[Round]) -> None:
    """It failed for this reason, it was told, and those to be kept of before are there, whole.

    What fails may be the removal of one that is old.
    """
    if os.strerror(why) not in answer.error:
        raise ChaosError(f"a checkpoint that meets {os.strerror(why)} ended {answer}")
    found = await asyncio.to_thread(_whole, scene)
    gone = set(sorted(before | found)[-KEPT:]) - found
    if gone:
        raise ChaosError(f"after {answer.error} the checkpoints of rounds {sorted(gone)} are gone")


def _whole(scene: Scene) -> set[Round]:
    """The rounds of the checkpoints that are there, each good to the bit."""
    found = complete(scene.saved)
    for number, path in found:
        if read(path).round != number:
            raise ChaosError(f"{path} is of another round")
    return {number for number, _ in found}


async def _asked(scene: Scene) -> Checkpoint:
    """Ask for a checkpoint, and wait for what becomes of it."""
    async with scene.cluster.api() as api:
        request = (await api.checkpoint(scene.job)).request

    def answer(job: Job) -> Checkpoint | None:
        found = job.checkpoint
        return found if found is not None and found.request >= request else None

    return await _seen(scene, answer)


async def _trains(scene: Scene) -> None:
    """Wait until rounds have ended that began after this."""
    now = await _seen(scene, lambda job: job.round)
    await _seen(scene, lambda job: (job.round or 0) > now + 1)


async def _seen(scene: Scene, found: Callable[[Job], Found | None]) -> Found:
    """Look at the job until ``found`` gives something true."""
    async with (
        asyncio.timeout(WAIT_S),
        scene.cluster.api() as api,
        aclosing(watch(partial(api.job, scene.job), period_s=LOOK_S)) as looks,
    ):
        async for look in looks:
            if result := found(look):
                return result
    raise AssertionError("unreachable: a watch has no end")
