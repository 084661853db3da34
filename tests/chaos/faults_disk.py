"""A disk that is full, slow, or fails, while a job writes its checkpoints to it.

The shard servers write the blocks, each those that it leads; the main worker commits them.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from itertools import count
from pathlib import Path
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
FSYNC_S = 1.0
SLOW_FSYNC = f"fsync:delay_enter={round(FSYNC_S * 1e6)}"
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
    """Of one checkpoint the first fsync fails, of the next the second, until there are no more.

    First those of the shard servers, then those of the workers.
    """
    before = await _written(scene)
    nodes = sorted(scene.cluster.expected)
    workers = [pid for node in nodes for pid in scene.cluster.pids(node).workers]
    blocks = await _fail_each_fsync(scene, _servers(scene), before)
    commits = await _fail_each_fsync(scene, workers, before)
    await _written(scene)
    return done(f"{blocks} checkpoints met a failing fsync of servers, {commits} of workers")


async def slow_disk(scene: Scene) -> Done:
    """The servers take long to write a checkpoint: the job trains on meanwhile, and it is whole."""
    await _written(scene)
    async with strace.failing(scene.cluster, _servers(scene), SLOW_FSYNC) as log:
        request = await _request(scene)
        await _delayed(scene, log)
        await _trains(scene)
        async with scene.cluster.api() as api:
            told = _answered(await api.job(scene.job), request)
        if told is not None:
            raise ChaosError("void: the checkpoint was not slow")
        answer = await _answer(scene, request)
    await _check_there(scene, answer)
    return done(f"the job trained while an fsync of its checkpoint took {FSYNC_S} s")


async def kill_writer(scene: Scene) -> Done:
    """A shard server dies while it writes: the checkpoint is whole, or told as failed."""
    before = await _written(scene)
    node = scene.mortal()
    async with strace.failing(scene.cluster, _servers(scene), SLOW_FSYNC) as log:
        request = await _request(scene)
        await _delayed(scene, log)
        at = await scene.kill_servers(node)
        answer = await _answer(scene, request)
    await (_check_kept(scene, answer, before) if answer.error else _check_there(scene, answer))
    await scene.whole()
    await _written(scene)
    ended = f"failed: {answer.error}" if answer.error else "was made"
    return done(f"the server of {node} died while a checkpoint was written, which {ended}", at, 1)


async def _written(scene: Scene) -> set[Round]:
    """Have one made; the rounds of those that are there."""
    answer = await _asked(scene)
    return await _check_there(scene, answer)


async def _check_there(scene: Scene, answer: Checkpoint) -> set[Round]:
    """It was made, and nothing is left of what was not."""
    if answer.error:
        raise ChaosError(f"no checkpoint: {answer.error}")
    found = await asyncio.to_thread(_whole, scene)
    if max(found) != answer.round:
        raise ChaosError(f"the checkpoint of round {answer.round} is not among {sorted(found)}")
    others = [path.name for path in scene.saved.iterdir() if path.name.startswith(".")]
    if others:
        raise ChaosError(f"beside the checkpoints there is still {others}")
    return found


async def _fail_each_fsync(scene: Scene, pids: Sequence[int], before: set[Round]) -> int:
    """How many checkpoints failed, in each one an fsync of a thread of these that comes later."""
    for number in count(1):
        what = f"fsync:error=EIO:when={number}"
        async with strace.failing(scene.cluster, pids, what) as log:
            answer = await _asked(scene)
        if "INJECTED" not in log.read_text():
            if number == 1:
                raise ChaosError(f"none of {list(pids)} made an fsync for a checkpoint")
            return number - 1
        await _check_refused(scene, answer, errno.EIO, before)
        await _trains(scene)
    raise AssertionError("unreachable: a count has no end")


async def _check_refused(scene: Scene, answer: Checkpoint, why: int, before: set[Round]) -> None:
    """It failed for this reason, it was told, and those to be kept of before are there, whole."""
    if os.strerror(why) not in answer.error:
        raise ChaosError(f"a checkpoint that meets {os.strerror(why)} ended {answer}")
    await _check_kept(scene, answer, before)


async def _check_kept(scene: Scene, answer: Checkpoint, before: set[Round]) -> None:
    """Those to be kept of before are there, whole. What failed may be the removal of one."""
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


def _servers(scene: Scene) -> list[int]:
    return [scene.server_pid(node) for node in sorted(scene.cluster.expected)]


async def _delayed(scene: Scene, log: Path) -> None:
    """Wait until somebody is within an fsync."""
    await scene.cluster.until(lambda: "fsync(" in log.read_text(), "a server writes a block")


async def _asked(scene: Scene) -> Checkpoint:
    """Ask for a checkpoint, and wait for what becomes of it."""
    return await _answer(scene, await _request(scene))


async def _request(scene: Scene) -> int:
    async with scene.cluster.api() as api:
        return (await api.checkpoint(scene.job)).request


async def _answer(scene: Scene, request: int) -> Checkpoint:
    return await _seen(scene, lambda job: _answered(job, request))


def _answered(job: Job, request: int) -> Checkpoint | None:
    found = job.checkpoint
    return found if found is not None and found.request >= request else None


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
