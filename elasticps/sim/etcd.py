"""A simulated etcd: revisions, compares, leases, compaction, and watches that lag and resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from elasticps.core.ids import NodeId
from elasticps.sim.clock import MS, Clock
from elasticps.sim.network import ETCD, Network
from elasticps.sim.process import Process

STORE_TIMEOUT = 40 * MS
WATCH_RETRY = 10 * MS


@dataclass(frozen=True, slots=True)
class Item:
    """A stored value; ``created`` and ``modified`` are revisions."""

    value: Any
    created: int
    modified: int
    lease: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; ``lease`` 0 means for ever, a ``value`` of None deletes it."""

    key: str
    value: Any
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """Hold the revision that made (``created``) or last changed a key against one; 0: absent."""

    key: str
    revision: int
    created: bool = False


@dataclass(slots=True)
class _Lease:
    ttl: int
    deadline: int


class Watch:
    """One process's mirror of all keys. ``seen`` is the last revision that it was given."""

    def __init__(self, process: Process, on_batch: Callable[[bool, list[Any], int], None]) -> None:
        self.process = process
        self.on_batch = on_batch
        self.seen = -1
        self.held_until = 0
        self.due = False


class Etcd:
    """The store. Requests are functions of it, carried out in the order in which they arrive."""

    def __init__(self, clock: Clock, network: Network, random: Random, lag: int) -> None:
        self.clock = clock
        self.revision = 1
        self.items: dict[str, Item] = {}
        self.paused = False
        self.on_expiry: Callable[[int], None] = lambda lease: None
        self._network = network
        self._random = random.random
        self._lag = lag
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._log: list[tuple[int, str, Item | None]] = []
        self._compacted = 0
        self._watches: list[Watch] = []
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    # -- over the network -----------------------------------------------------------------------

    def request(
        self,
        caller: Process,
        do: Callable[[Etcd], Any],
        on_reply: Callable[[Any], None],
        on_timeout: Callable[[], None],
    ) -> None:
        """Let etcd carry out ``do``; without an answer in time it may have been, or not."""
        delay = self._network.delay(caller.node, ETCD)
        self.clock.after(delay, self._arrive, caller, do, on_reply, on_timeout)

    def _arrive(self, caller: Process, do: Any, on_reply: Any, on_timeout: Any) -> None:
        if self._network.is_cut(caller.node, ETCD):
            caller.later(STORE_TIMEOUT, on_timeout)
        elif self.paused:
            # Carried out later, and too late to be heard of.
            self._backlog.append((do, (self,)))
            caller.later(STORE_TIMEOUT, on_timeout)
        else:
            result = do(self)
            if self._network.is_cut(ETCD, caller.node):
                caller.later(STORE_TIMEOUT, on_timeout)
            else:
                caller.later(self._network.delay(ETCD, caller.node), on_reply, result)

    # -- transactions ---------------------------------------------------------------------------

    def txn(self, compares: list[Compare], puts: list[Put]) -> int | None:
        """The revision of the write; None when a compare failed or a lease is gone."""
        for compare in compares:
            item = self.items.get(compare.key)
            found = 0 if item is None else item.created if compare.created else item.modified
            if found != compare.revision:
                return None
        if any(put.lease and put.lease not in self._leases for put in puts):
            return None
        self._write(puts)
        return self.revision

    def _write(self, puts: list[Put]) -> None:
        self.revision += 1
        for put in puts:
            old = self.items.pop(put.key, None)
            item = None
            if put.value is not None:
                created = old.created if old else self.revision
                item = self.items[put.key] = Item(put.value, created, self.revision, put.lease)
            elif old is None:
                continue
            self._log.append((self.revision, put.key, item))
        for watch in self._watches:
            self._tell(watch)

    # -- leases ---------------------------------------------------------------------------------

    def grant(self, ttl: int) -> int:
        self._last_lease += 1
        lease = self._last_lease
        self._leases[lease] = _Lease(ttl, self.clock.now + ttl)
        self.clock.after(ttl, self._expire, lease)
        return lease

    def keep_alive(self, lease: int) -> bool:
        known = self._leases.get(lease)
        if known is None:
            return False
        known.deadline = self.clock.now + known.ttl
        return True

    def holds(self, lease: int) -> bool:
        return lease in self._leases

    def _expire(self, lease: int) -> None:
        known = self._leases.get(lease)
        if known is None:
            return
        if self.paused:
            self.clock.after(known.ttl, self._expire, lease)
        elif known.deadline > self.clock.now:
            self.clock.at(known.deadline, self._expire, lease)
        else:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        if self._leases.pop(lease, None) is None:
            return
        self.clock.note(f"etcd lease {lease} over")
        self.on_expiry(lease)
        gone = [Put(key, None) for key, item in self.items.items() if item.lease == lease]
        if gone:
            self._write(gone)

    # -- watches --------------------------------------------------------------------------------

    def watch(self, watch: Watch) -> None:
        self._watches.append(watch)
        self._tell(watch)

    def unwatch(self, process: Process) -> None:
        self._watches = [watch for watch in self._watches if watch.process is not process]

    def hold(self, process: Process, until: int) -> None:
        """The watch of ``process`` brings nothing before ``until``."""
        for watch in self._watches:
            if watch.process is process:
                watch.held_until = until

    def _tell(self, watch: Watch) -> None:
        if not watch.due:
            watch.due = True
            delay = self._network.delay(ETCD, watch.process.node)
            drawn = self._random()
            lag = int(self._lag * drawn * (8 if drawn > 0.95 else 1))
            self.clock.after(delay + lag, self._deliver, watch)

    def _deliver(self, watch: Watch) -> None:
        """Give it all since the last revision that it has seen, or everything after compaction."""
        process = watch.process
        if not process.alive:
            return
        cut = self._network.is_cut(ETCD, process.node) or self._network.is_cut(process.node, ETCD)
        if cut or self.paused or watch.held_until > self.clock.now:
            self.clock.after(WATCH_RETRY, self._deliver, watch)
            return
        watch.due = False
        whole = watch.seen < max(0, self._compacted - 1)
        if whole:
            batch: list[Any] = list(self.items.items())
        else:
            batch = [(key, item) for at, key, item in self._log if at > watch.seen]
        watch.seen = self.revision
        process.run(watch.on_batch, whole, batch, self.revision)

    # -- what goes wrong ------------------------------------------------------------------------

    def compact(self) -> None:
        self._compacted = self.revision
        self._log = [entry for entry in self._log if entry[0] >= self.revision]

    def resume(self) -> None:
        """After a pause a new etcd leader gives every lease its whole time again."""
        if not self.paused:
            return
        self.paused = False
        for lease in self._leases.values():
            lease.deadline = self.clock.now + lease.ttl
        backlog, self._backlog = self._backlog, []
        for do, args in backlog:
            if self._random() < 0.5:
                do(*args)


def alive_nodes(items: dict[str, Item]) -> list[NodeId]:
    """The registered nodes, in order."""
    return [NodeId(key[6:]) for key in sorted(items) if key.startswith("nodes/")]
