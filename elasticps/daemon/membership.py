"""The node's place in the cluster: its lease, its registration, its candidature for leadership."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from elasticps.core.ids import NodeId
from elasticps.core.records import NodeRecord, decode, encode
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.leader import Leader
from elasticps.errors import (
    FenceLost,
    LeaseLost,
    StoreError,
    StoreRolledBack,
    StoreUnavailable,
    UsageError,
)
from elasticps.store import (
    Compare,
    Delete,
    Election,
    Keys,
    Lease,
    Snapshot,
    Store,
    watch_prefix,
)

log = logging.getLogger(__name__)

RETRY_S = 0.3


class Membership:
    """Registers the node under a lease; on losing it, registers anew under another.

    ``record`` gives the node's registration once its shard server listens; ``rewritten`` is set
    when that has changed. ``lease`` is None while the node is not registered; ``joined`` says
    whether it ever was.
    """

    def __init__(
        self,
        config: DaemonConfig,
        store: Store,
        keys: Keys,
        leader: Leader,
        record: Callable[[], Awaitable[NodeRecord]],
        seen: Callable[[int], Awaitable[None]],
        on_lease: Callable[[float], None],
        on_change: Callable[[Lease | None], Awaitable[None]],
    ) -> None:
        self.lease: Lease | None = None
        self.joined = False
        self.leading = False
        self.rewritten = asyncio.Event()
        self._config = config
        self._store = store
        self._keys = keys
        self._leader = leader
        self._record = record
        self._seen = seen
        self._on_lease = on_lease
        self._on_change = on_change

    async def run(self) -> None:
        """Stay a member until cancelled; then leave the cluster.

        Raises UsageError when another living daemon has this node's id, StoreError when etcd
        refuses the first registration or holds another's value in its place, StoreRolledBack when
        etcd has gone back in its history: this node must not act by it, now or later.
        """
        while True:
            try:
                async with Lease.grant(
                    self._store, round(self._config.lease_ttl_s), self._renewed
                ) as lease:
                    await self._live(lease)
            except LeaseLost as error:
                log.error("not a member any more: %s", error)
            except StoreUnavailable as error:
                log.warning("etcd does not answer: %s", error)
            except StoreRolledBack:
                raise
            except StoreError as error:
                if not self.joined:
                    raise
                # The blocks here outlive what is wrong with etcd (no space left, say).
                log.error("not a member: %s", error)
            await asyncio.sleep(RETRY_S)

    async def _live(self, lease: Lease) -> None:
        """One registration, from its start to the loss of its lease."""
        try:
            await lease.while_held(self._registered(lease))
        except BaseExceptionGroup as errors:
            # The first to fail is the cause; the group then cancelled the other.
            raise errors.exceptions[0] from None
        finally:
            self.lease, self.leading = None, False
            await self._on_change(None)

    async def _registered(self, lease: Lease) -> None:
        record = await self._record()
        self.rewritten.clear()
        revision = await self._claim(record, lease)
        # What was planned while this node was no member: its server must not lead by older plans.
        await self._seen(revision)
        self.lease, self.joined = lease, True
        self._on_lease(lease.deadline)
        await self._on_change(lease)
        log.info("node=%s incarnation=%s registered", record.node, record.incarnation)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_record(lease, revision))
            tasks.create_task(self._notice_removal(record.node))
            tasks.create_task(self._campaign(lease, record))

    def _renewed(self, deadline: float) -> None:
        if self.lease is not None:
            self._on_lease(deadline)

    async def _claim(self, record: NodeRecord, lease: Lease) -> int:
        """Take the node's key and return the revision of that.

        An older life's key is waited for as long as its lease may last.
        """
        key = self._keys.node(record.node)
        wait_s = 2 * self._config.lease_ttl_s
        deadline = time.monotonic() + wait_s
        waiting = False
        while (revision := await self._store.create(key, encode(record), lease.id)) is None:
            held = await self._store.get(key)
            if held is None:
                continue
            if decode(held.value, NodeRecord, key).incarnation == record.incarnation:
                seen = Compare.modified(key, held.mod_revision)
                await self._store.txn([seen], [Delete(key)])
            elif time.monotonic() > deadline:
                raise UsageError(
                    f"node id {record.node} is taken by a living daemon",
                    field="node",
                    hint="give each machine's daemon an id of its own with --node",
                )
            else:
                if not waiting:
                    log.warning("node id %s is taken: waiting at most %d s", record.node, wait_s)
                waiting = True
                await asyncio.sleep(RETRY_S)
        return revision

    async def _keep_record(self, lease: Lease, revision: int) -> None:
        """Write the registration again whenever it changes: the shard server was restarted, say.

        Each write replaces a known revision, so that one whose answer was lost cannot come late and
        bring back what it said.
        """
        while True:
            await self.rewritten.wait()
            self.rewritten.clear()
            record = await self._record()
            key = self._keys.node(record.node)
            try:
                written = await self._store.replace(key, encode(record), revision, lease.id)
                if written is None:
                    revision = await self._latest_revision(key)
                    self.rewritten.set()
                else:
                    revision = written
            except (LeaseLost, StoreRolledBack):
                raise
            except StoreError as error:
                log.warning("the registration waits for etcd: %s", error)
                self.rewritten.set()
                await asyncio.sleep(RETRY_S)

    async def _latest_revision(self, key: str) -> int:
        held = await self._store.get(key)
        if held is None:
            raise _removed(key)
        return held.mod_revision

    async def _notice_removal(self, node: NodeId) -> None:
        """Raise LeaseLost when the registration is gone: another has declared this daemon dead."""
        key = self._keys.node(node)
        async with aclosing(watch_prefix(self._store, key)) as batches:
            async for batch in batches:
                if isinstance(batch, Snapshot):
                    gone = all(item.key != key for item in batch.items)
                else:
                    gone = any(event.key == key and event.kv is None for event in batch.events)
                if gone:
                    raise _removed(key)

    async def _campaign(self, lease: Lease, record: NodeRecord) -> None:
        election = Election(self._store, self._keys.leader)
        while True:
            fence = await election.campaign(lease, record.node.encode())
            log.info("node=%s leads, fence=%d", record.node, fence.create_revision)
            self.leading = True
            try:
                await self._leader.lead(fence)
            except FenceLost as error:
                log.warning("deposed: %s", error)
            finally:
                self.leading = False


def _removed(key: str) -> LeaseLost:
    return LeaseLost("the registration was removed from etcd", where=key)
