"""Deaths and pauses: kill -9, SIGSTOP past the lease, empty restarts, moves that are cut short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from elasticps.core.ids import NodeId, node_of
from elasticps.core.plan import Entry
from elasticps.store import revoke
from tests.chaos.cluster import LOOK_S, WAIT_S, WITNESS, ChaosError
from tests.chaos.scene import Done, Scene, done

STALL_S = 1.0
GUEST = "guest"


async def kill_primary(scene: Scene) -> Done:
    """The shard server that leads the most blocks of those that may die."""
    node = max(scene.mortals, key=scene.leads)
    leads = scene.leads(node)
    if not leads:
        raise ChaosError("no server that may die leads a block")
    at = await scene.kill_servers(node)
    return done(f"the server of {node} died, which led {leads} blocks", at, 1, "server")


async def kill_backup(scene: Scene) -> Done:
    node = max(scene.mortals, key=scene.backs)
    backs = scene.backs(node)
    if not backs:
        raise ChaosError("no server that may die is a backup")
    at = await scene.kill_servers(node)
    return done(f"the server of {node} died, the backup of {backs} blocks", at, 1, "server")


async def kill_ahead(scene: Scene) -> Done:
    """A primary that may have gone on for a while without its backups, which hung, dies."""
    node = max(scene.mortals, key=scene.leads)
    others = sorted(scene.cluster.expected - {node})
    async with scene.stopped(*(scene.server_pid(other) for other in others)):
        await scene.pause(STALL_S)
        at = await scene.kill_servers(node)
    return done(f"the server of {node} died while those of {others} hung", at, 1)


async def kill_together(scene: Scene) -> Done:
    """As many servers at once as a job must survive: one fewer than there are copies."""
    nodes = scene.random.sample(scene.mortals, scene.replicas - 1)
    at = await scene.kill_servers(*nodes)
    return done(f"the servers of {nodes} died at once", at, len(nodes), "server")


async def kill_node(scene: Scene) -> Done:
    node = scene.mortal()
    at = await scene.kill_node(node)
    return done(f"all of {node} died", at, 1, "node")


async def kill_node_for_good(scene: Scene) -> Done:
    """It comes back only once the cluster has buried it."""
    node = scene.mortal()
    at = await scene.kill_node(node, restart=False)
    await scene.until_gone(node)
    buried_s = time.monotonic() - at
    await scene.cluster.local.wait(node)
    await scene.cluster.add(node)
    return done(f"all of {node} died and was buried after {buried_s:.2f} s", at, 1, "node")


async def kill_daemon(scene: Scene) -> Done:
    """The daemon alone is sent the signal: the kernel takes its children along."""
    node = scene.mortal()
    pids = scene.cluster.pids(node)
    at = await scene.cluster.killed(pids.daemon)
    await scene.cluster.killed(*pids.all)
    await scene.cluster.local.wait(node)
    await scene.cluster.add(node)
    return done(f"the daemon of {node} died", at, 1, "node")


async def kill_leader(scene: Scene) -> Done:
    """All of the node that plans."""
    view, leader = scene.cluster.view, await _mortal_leader(scene)
    at = await scene.kill_node(leader, restart=False)
    await scene.cluster.until(lambda: view.leader not in (None, leader), "another leads")
    elected_s = time.monotonic() - at
    await scene.cluster.local.wait(leader)
    await scene.cluster.add(leader)
    return done(f"{leader} led and died, {elected_s:.2f} s to the next leader", at, 1, "node")


async def kill_server_of_leader(scene: Scene) -> Done:
    """The shard server beside the daemon that plans."""
    leader = await _mortal_leader(scene)
    at = await scene.kill_servers(leader)
    return done(f"the server of {leader} died, whose daemon leads", at, 1, "server")


async def _mortal_leader(scene: Scene) -> str:
    """The node that leads; the witness, which must not die, is deposed first."""
    view = scene.cluster.view
    if view.leader == WITNESS:
        await revoke_lease(scene, WITNESS)
        await scene.cluster.until(lambda: view.leader not in (None, WITNESS), "another leads")
        await scene.whole()
    if view.leader in (None, WITNESS):
        raise ChaosError(f"{view.leader} leads, although the witness was deposed")
    return str(view.leader)


async def kill_worker(scene: Scene) -> Done:
    node = scene.mortal()
    workers = scene.cluster.pids(node).workers
    at = await scene.cluster.killed(*workers)
    return done(f"the workers {workers} of {node} died", at)


async def stop_node(scene: Scene) -> Done:
    """Everything on it sleeps past its lease, is taken for dead, and wakes."""
    node = scene.any_node()
    async with scene.stopped(*scene.cluster.pids(node).all):
        await scene.until_replaced(node)
    return done(f"{node} slept until etcd had dropped it")


async def stop_daemon(scene: Scene) -> Done:
    """The daemon alone sleeps past its lease; its server, which has its own clock, does not."""
    node = scene.any_node()
    async with scene.stopped(scene.cluster.pids(node).daemon):
        await scene.until_replaced(node)
    return done(f"the daemon of {node} slept until etcd had dropped it")


async def stop_server(scene: Scene) -> Done:
    """A server that hangs for a moment, under a daemon that is well."""
    node = scene.any_node()
    async with scene.stopped(scene.server_pid(node)):
        await scene.pause(STALL_S)
    return done(f"the server of {node} hung for {STALL_S} s")


async def stop_worker(scene: Scene) -> Done:
    node = scene.any_node()
    async with scene.stopped(*scene.cluster.pids(node).workers):
        await scene.pause(STALL_S)
    return done(f"the worker of {node} hung for {STALL_S} s")


async def kill_migration_source(scene: Scene) -> Done:
    """A server dies of which blocks are being copied off."""
    async with _moving(scene) as moves:

        def source() -> str | None:
            nodes = {node_of(entry.primary) for entry in moves()}
            return min(nodes.intersection(scene.mortals), default=None)

        victim = await _found(scene, source)
        at = await scene.kill_servers(victim)
    return done(f"{victim} died, the source of a move", at, 1)


async def kill_migration_target(scene: Scene) -> Done:
    """A server dies on which blocks are being copied."""
    async with _moving(scene) as moves:

        def target() -> str | None:
            nodes = {node_of(server) for entry in moves() for server in entry.learners}
            return min(nodes.intersection(scene.mortals), default=None)

        victim = await _found(scene, target)
        at = await scene.kill_servers(victim)
    return done(f"{victim} died, the target of a move", at, 1)


@asynccontextmanager
async def _moving(scene: Scene) -> AsyncIterator[Callable[[], list[Entry]]]:
    """Moves are under way: off a node that drains or, where all nodes are needed, to a guest."""

    def moves() -> list[Entry]:
        return [entry for entry in scene.entries if entry.learners]

    if scene.replicas < len(scene.cluster.expected):
        drained = scene.any_node()
        await scene.cluster.drain(drained, stay=True)
        try:
            yield moves
        finally:
            await scene.cluster.undrain(drained)
    else:
        await scene.cluster.add(GUEST)
        yield moves
        await scene.leave(GUEST)


async def _found(scene: Scene, who: Callable[[], str | None]) -> str:
    found = await scene.cluster.until(who, "blocks move")
    assert found is not None
    return found


async def join_and_leave(scene: Scene) -> Done:
    """Another node comes, takes its share, drains and leaves."""
    leads = await scene.join(GUEST)
    await scene.leave(GUEST)
    return done(f"{GUEST} came, led {leads} blocks, and left")


async def revoke_lease(scene: Scene, node: str = "") -> Done:
    """etcd forgets a node that is well."""
    node = node or scene.any_node()
    store, key = scene.cluster.local.store, scene.cluster.local.keys.node(node)
    before = await store.get(key)
    if before is None:
        raise ChaosError(f"{node} is not registered")
    deposed = scene.cluster.ownership.deposed
    deposed.add(NodeId(node))
    await revoke(store, before.lease)
    async with asyncio.timeout(WAIT_S):
        while (after := await store.get(key)) is None or after.lease == before.lease:
            await asyncio.sleep(LOOK_S)
    view = scene.cluster.view
    await scene.cluster.until(lambda: view.revision >= after.mod_revision, "it is seen")
    deposed.discard(NodeId(node))
    return done(f"the lease of {node} was revoked, and it registered anew")
