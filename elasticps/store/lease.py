"""A lease, kept alive by its own task, and lost by our own clock before etcd's can run out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from aetcd import rpc

from elasticps.errors import (
    LeaseLost,
    StoreError,
    StoreRolledBack,
    StoreUnavailable,
    UsageError,
)
from elasticps.store.client import Store
from elasticps.store.endpoints import Link, Metadata

T = TypeVar("T")

_log = logging.getLogger(__name__)
_PAUSE_S = 0.05


class Lease:
    """``async with Lease.grant(store, ttl_s) as lease``, or ``Lease.acquire`` and ``aclose``.

    ``deadline`` is the monotonic time up to which the lease is surely held: taken before the last
    request that etcd answered, plus the time to live that it granted (which may be longer than
    what was asked for). ``lost`` is set at that deadline, or when etcd says that the lease is
    gone, or at ``aclose``; it is never cleared. ``on_renewed`` is called with each new deadline.
    """

    def __init__(
        self,
        store: Store,
        lease_id: int,
        ttl_s: float,
        deadline: float,
        on_renewed: Callable[[float], None] | None,
    ) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.deadline = deadline
        self.lost = asyncio.Event()
        self._store = store
        self._on_renewed = on_renewed
        self._keeping = asyncio.create_task(self._keep(), name=f"lease {lease_id:x}")
        self._closed = False

    @classmethod
    async def acquire(
        cls, store: Store, ttl_s: int, on_renewed: Callable[[float], None] | None = None
    ) -> Lease:
        """Ask etcd for a lease of ``ttl_s`` seconds and keep it alive until ``aclose``."""
        sent = time.monotonic()
        answer = await _granted(store, ttl_s)
        return cls(store, answer.ID, float(answer.TTL), sent + answer.TTL, on_renewed)

    @classmethod
    @asynccontextmanager
    async def grant(
        cls, store: Store, ttl_s: int, on_renewed: Callable[[float], None] | None = None
    ) -> AsyncIterator[Lease]:
        lease = await cls.acquire(store, ttl_s, on_renewed)
        try:
            yield lease
        finally:
            await lease.aclose()

    def raise_if_lost(self) -> None:
        """Raise LeaseLost unless the lease is surely held now, even if the loop was blocked."""
        if self.lost.is_set() or time.monotonic() >= self.deadline:
            raise LeaseLost("the lease is lost", where=f"lease {self.id:x}")

    async def while_held(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``; cancel it and raise LeaseLost if the lease is lost first."""
        working = asyncio.create_task(work)
        losing = asyncio.create_task(self.lost.wait())
        try:
            await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(working)
            await _cancelled(losing)
        if working.cancelled():
            self.raise_if_lost()
        return working.result()

    async def aclose(self) -> None:
        """Stop keeping the lease and revoke it, which deletes its keys. Idempotent.

        When etcd cannot be told, that is logged: the lease then runs out by itself. Raises
        StoreRolledBack when the lease was lost by that.
        """
        if self._closed:
            return
        self._closed = True
        await _cancelled(self._keeping)
        await self._revoke()
        if not self._keeping.cancelled():
            self._keeping.result()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._left_s()) as guard:
                while await self._renew():
                    guard.reschedule(loop.time() + self._left_s())
        except TimeoutError:
            _log.warning("lease lost lease=%x reason=own-deadline", self.id)
        finally:
            self.lost.set()

    async def _renew(self) -> bool:
        """Renew once, a third of the time to live after the last time; False when it is gone."""
        period_s = self.ttl_s / 3
        await asyncio.sleep(self._left_s() - 2 * period_s)
        while True:
            sent = time.monotonic()
            try:
                ttl_s = await self._keepalive(period_s)
            except LeaseLost:
                ttl_s = 0
            except StoreRolledBack:
                raise
            except StoreError as error:
                _log.warning("lease keepalive failed lease=%x error=%s", self.id, error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if ttl_s <= 0:
                _log.warning("lease lost lease=%x reason=gone-in-etcd", self.id)
                return False
            if time.monotonic() >= self.deadline:
                _log.warning("lease lost lease=%x reason=renewed-too-late", self.id)
                return False
            self.deadline = sent + ttl_s
            if self._on_renewed:
                self._on_renewed(self.deadline)
            return True

    async def _keepalive(self, timeout_s: float) -> int:
        answer = await self._store.endpoints.call(
            lambda link: partial(_keepalive_once, link),
            rpc.LeaseKeepAliveRequest(ID=self.id),
            timeout_s=timeout_s,
            repeatable=True,
            linearizable=False,
        )
        ttl_s: int = answer.TTL
        return ttl_s

    async def _revoke(self) -> None:
        try:
            await revoke(self._store, self.id)
        except StoreError as error:
            _log.warning("lease not revoked lease=%x error=%s", self.id, error)

    def _left_s(self) -> float:
        return self.deadline - time.monotonic()


async def grant_unkept(store: Store, ttl_s: int) -> int:
    """The id of a lease that nobody keeps alive: its keys go after ``ttl_s`` seconds."""
    lease_id: int = (await _granted(store, ttl_s)).ID
    return lease_id


async def revoke(store: Store, lease_id: int) -> bool:
    """End anyone's lease, which deletes its keys in one step; False when etcd has no such lease.

    Raises StoreUnavailable when no endpoint answers: it may be revoked then.
    """
    request = rpc.LeaseRevokeRequest(ID=lease_id)
    try:
        await store.endpoints.call(lambda link: link.lease.LeaseRevoke, request, repeatable=True)
    except LeaseLost:
        return False
    return True


async def _granted(store: Store, ttl_s: int) -> Any:
    if ttl_s < 1:
        raise UsageError(f"a lease cannot live {ttl_s} s", field="ttl_s", limit="at least 1 s")
    # A second lease after a lost answer does no harm: it runs out unused.
    answer = await store.endpoints.call(
        lambda link: link.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s), repeatable=True
    )
    if answer.error:
        raise StoreError(answer.error)
    return answer


async def _keepalive_once(
    link: Link, request: Any, *, timeout: float, metadata: Metadata, wait_for_ready: bool
) -> Any:
    """One renewal on a stream of its own, so that it can go to any endpoint."""
    call = link.lease.LeaseKeepAlive(
        iter((request,)), timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready
    )
    try:
        answer = await call.read()
    finally:
        call.cancel()
    if not isinstance(answer, rpc.LeaseKeepAliveResponse):
        raise StoreUnavailable("etcd closed the keepalive without an answer", where=link.target)
    return answer


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task, unless it is done, and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})
