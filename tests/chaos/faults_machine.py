"""etcd's own deaths and pauses, and a machine that runs short of something."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
import time
from contextlib import AsyncExitStack
from email.utils import parsedate_to_datetime

import aiohttp

from elasticps.core.ids import NodeId
from elasticps.store.embedded import ending_with_parent
from elasticps.wire.address import Address
from tests.chaos.cluster import LEASE_TTL_S, SKEWED, ChaosError, children
from tests.chaos.scene import Done, Scene, descriptors, done
from tests.support.etcd import EtcdServer, compact

SHORT_PAUSE_S = 0.6
LONG_PAUSE_S = LEASE_TTL_S + 1.0
HOGS, HOG_S = 4, 4.0
SPARE_DESCRIPTORS = 2
DAY_S = 86_400


async def kill_etcd(scene: Scene) -> Done:
    """Its only member, or the leader of three, is killed and started again with its data."""
    member = await _leading_member(scene)
    await asyncio.to_thread(member.kill)
    member.start()
    await member.ready()
    return done(f"etcd member {member.name} was killed and started again")


async def pause_etcd(scene: Scene) -> Done:
    """Shorter than a lease: nobody has to notice."""
    await _paused(scene, SHORT_PAUSE_S)
    return done(f"etcd slept {SHORT_PAUSE_S} s")


async def pause_etcd_past_leases(scene: Scene) -> Done:
    """Every node's lease is over by its own clock before etcd wakes."""
    await _paused(scene, LONG_PAUSE_S)
    return done(f"etcd slept {LONG_PAUSE_S} s, longer than every lease")


async def compact_etcd(scene: Scene) -> Done:
    """History is gone below the watches of a node that was away from etcd meanwhile."""
    store = scene.cluster.local.store
    node = scene.any_node()
    for _ in range(5):
        await store.put("/chaos/churn", b"x")
    revision = (await store.status()).revision
    await scene.cluster.links[node].reset()
    await compact(store, revision)
    return done(f"etcd was compacted at {revision} while {node} was reconnecting")


async def hog_cpu(scene: Scene) -> Done:
    """Processes that never sleep, beside all that the cluster has to do."""
    command = ending_with_parent(sys.executable, "-c", "while True: pass")
    hogs = [await asyncio.create_subprocess_exec(*command) for _ in range(HOGS)]
    try:
        await scene.pause(HOG_S)
        ended = [hog.returncode for hog in hogs if hog.returncode is not None]
    finally:
        for hog in hogs:
            if hog.returncode is None:
                hog.send_signal(signal.SIGKILL)
            await hog.wait()
    if ended:
        raise ChaosError(f"hogs ended by themselves: {ended}")
    return done(f"{len(hogs)} processes took all CPU for {HOG_S} s")


async def starve_descriptors(scene: Scene) -> Done:
    """A shard server can open nothing more while its peers' connections come anew."""
    node = scene.mortal()
    pid = scene.server_pid(node)
    (server,) = scene.cluster.view.nodes[NodeId(node)].servers
    address = Address.parse(server.tcp)
    limit, before = resource.RLIMIT_NOFILE, resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = descriptors(pid) + SPARE_DESCRIPTORS
    resource.prlimit(pid, limit, (most, before[1]))
    try:
        async with AsyncExitStack() as held:
            for _ in range(2 * SPARE_DESCRIPTORS):
                _, writer = await asyncio.open_connection(address.host, address.port)
                held.callback(writer.transport.abort)
            await scene.cluster.until(lambda: descriptors(pid) >= most, f"{node} has no more")
            other = next(name for name in scene.mortals if name != node)
            at = await scene.kill_servers(other)
            await scene.pause(LEASE_TTL_S)
    finally:
        if any(pid == child for child, _ in children(scene.cluster.pids(node).daemon)):
            resource.prlimit(pid, limit, before)
    return done(f"the server of {node} had all its {most} descriptors open, {other}'s died", at, 1)


async def jump_clock(scene: Scene) -> Done:
    """A guest's wall clock goes forward by a day, and then back behind where it was."""
    await scene.join(SKEWED)
    clock = scene.cluster.clock
    assert clock is not None
    seen = []
    for offset_s in (DAY_S, -DAY_S):
        clock.jump(offset_s)
        await scene.pause(LEASE_TTL_S)
        seen.append(round(await _ahead_s(scene, SKEWED) / DAY_S))
    clock.jump(0)
    if seen != [1, -1]:
        raise ChaosError(f"the wall clock of {SKEWED} went by {seen} days")
    await scene.leave(SKEWED)
    return done(f"the wall clock of {SKEWED} was a day ahead, then a day behind")


async def _ahead_s(scene: Scene, node: str) -> float:
    """What time its daemon says it is, beside the time here."""
    async with (
        aiohttp.ClientSession(scene.cluster.view.nodes[NodeId(node)].http) as session,
        session.get("/healthz") as answer,
    ):
        return parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()


async def _leading_member(scene: Scene) -> EtcdServer:
    if len(scene.cluster.etcd.members) == 1:
        return scene.cluster.etcd.members[0]
    return await scene.cluster.etcd.leader()


async def _paused(scene: Scene, pause_s: float) -> None:
    members = scene.cluster.etcd.members
    try:
        for member in members:
            await asyncio.to_thread(member.pause)
        await scene.pause(pause_s)
    finally:
        for member in members:
            member.resume()
