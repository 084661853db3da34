"""An etcd that cannot store what it is given, or takes its time to."""

from __future__ import annotations

from aetcd import rpc

from elasticps.errors import StoreError
from elasticps.store import Store
from tests.chaos import strace
from tests.chaos.cluster import ChaosError
from tests.chaos.scene import Done, Scene, done
from tests.support.etcd import alarm

FULL_S = 4.0
SLOW_S = 4.0
FSYNC_S = 0.2
LEAST_DELAYED = 10
PROBE = "/chaos/probe"


async def fill_etcd(scene: Scene) -> Done:
    """A server dies while etcd takes no write: who leads its blocks can be decided only then."""
    store, node = scene.cluster.local.store, scene.mortal()
    await alarm(store, rpc.AlarmRequest.ACTIVATE)
    try:
        refused = await _refusal(store)
        await scene.kill_servers(node)
        await scene.pause(FULL_S)
        await _refusal(store)
    finally:
        await alarm(store, rpc.AlarmRequest.DEACTIVATE)
    await store.put(PROBE, b"")
    return done(
        f"etcd refused writes for {FULL_S} s ({refused}), the server of {node} died", kills=1
    )


async def slow_etcd_disk(scene: Scene) -> Done:
    """Every fsync of every member takes long, and a server dies meanwhile."""
    node = scene.mortal()
    pids = [member.pid for member in scene.cluster.etcd.members]
    what = f"fsync,fdatasync:delay_enter={round(FSYNC_S * 1e6)}"
    async with strace.failing(scene.cluster, pids, what) as log:
        at = await scene.kill_servers(node)
        await scene.pause(SLOW_S)
        delayed = log.read_text().count("(DELAYED)")
    if delayed < LEAST_DELAYED:
        raise ChaosError(f"only {delayed} fsyncs of etcd were delayed")
    return done(f"{delayed} fsyncs of etcd took {FSYNC_S} s, the server of {node} died", at, 1)


async def _refusal(store: Store) -> str:
    """What etcd says to a write, which it must refuse for want of space."""
    try:
        await store.put(PROBE, b"")
    except StoreError as error:
        if "database space exceeded" not in error.what:
            raise
        return error.what
    raise ChaosError("etcd took a write under the alarm that it has no space")
