"""Gloo process groups for one generation of workers: the only file that makes any.

torch has no stable official way to a group of one's own, so this is kept in one place. The user's
default group is not touched. Nothing aborts an operation in flight (not abort(), shutdown() or
destroy_process_group()), and dropping a group blocks until it ends or times out. So an operation is
issued and looked at beside the ledger's word, and a group that is not wanted any more is handed to
a thread that may block. Errors are plain RuntimeErrors whose messages mean nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed
from torch._C._distributed_c10d import ProcessGroupGloo, Store, Work

from elasticps.errors import MembershipChanged, PeerUnavailable

LOOK_S = 0.05
"""How often an operation in flight is held against the ledger's word."""
TIMEOUT_S = 60.0
"""For a peer that hangs, or is cut off: it ends what nobody's word has ended."""

Put = Callable[[str, bytes], None]
Get = Callable[[int, str], bytes]


class Rendezvous(Store):
    """How a group's ranks find each other: each keeps what it sets, and is asked for it.

    No process hosts it. ``put`` leaves a value with this rank, ``get`` asks a rank, waiting until
    it has one; what they raise comes out of the group's making as a RuntimeError.
    """

    def __init__(self, put: Put, get: Get) -> None:
        super().__init__()
        self._put = put
        self._get = get
        self._own: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        encoded = value.encode() if isinstance(value, str) else bytes(value)
        self._own[key] = encoded
        self._put(key, encoded)

    def get(self, key: str) -> bytes:
        """Gloo's keys end in the rank that sets them."""
        if key not in self._own:
            owner = key.rpartition("/")[2]
            if not owner.isdigit():
                raise KeyError(key)
            self._own[key] = self._get(int(owner), key)
        return self._own[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)


class Group:
    """The members of one generation, in rank order. Made by the first operation.

    ``is_over`` tells, from any thread, whether the generation is.
    """

    def __init__(
        self, rendezvous: Rendezvous, rank: int, world: int, host: str, is_over: Callable[[], bool]
    ) -> None:
        self._rendezvous = rendezvous
        self._rank = rank
        self._world = world
        self._host = host
        self._is_over = is_over
        self._made: ProcessGroupGloo | None = None

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace ``tensor`` (contiguous, on the CPU) by the sum of all ranks' in its place.

        The sum is the same in every rank, bit for bit. Raises PeerUnavailable, MembershipChanged;
        then the tensor holds some partial sum and must not be touched again: gloo may write to it
        yet. The next operation makes a new group.
        """
        if self._world == 1:
            return
        group = self._made = self._made or self._make()
        with self._dropped_on_error(group, tensor):
            work = group.allreduce([tensor])  # type: ignore[attr-defined]
            try:
                self._watch(work)
            except MembershipChanged:
                _leave_to_a_thread([work, tensor])
                raise

    def drop(self) -> None:
        """Let go of the group; returns at once, whatever is in flight."""
        made, self._made = self._made, None
        if made is not None:
            _leave_to_a_thread([made, self._rendezvous])

    @contextmanager
    def _dropped_on_error(self, group: ProcessGroupGloo, tensor: torch.Tensor) -> Iterator[None]:
        """The others learn of the failure by the group's being dropped here: so it is, at once."""
        try:
            yield
        except RuntimeError as error:
            self.drop()
            raise PeerUnavailable(f"a sum over {self._world} workers failed: {error}") from None
        except MembershipChanged:
            self.drop()
            raise

    def _watch(self, work: Work) -> None:
        while not work.is_completed():
            if self._is_over():
                raise MembershipChanged("the set of workers changed during a sum")
            try:
                work.wait(timedelta(seconds=LOOK_S))
            except RuntimeError:
                continue  # not done yet, or failed: is_completed() tells
        work.wait()

    def _make(self) -> ProcessGroupGloo:
        """On a thread, which is left behind where the generation ends first."""
        made: list[ProcessGroupGloo] = []
        failed: list[Exception] = []

        def make() -> None:
            try:
                made.append(_gloo(self._rendezvous, self._rank, self._world, self._host))
            except Exception as error:  # gloo's are RuntimeErrors, the rendezvous' anything
                failed.append(error)

        thread = threading.Thread(target=make, name="elasticps-group", daemon=True)
        thread.start()
        while thread.is_alive():
            if self._is_over():
                raise MembershipChanged("the set of workers changed while they connected")
            thread.join(LOOK_S)
        if failed:
            raise PeerUnavailable(f"no group of {self._world} workers: {failed[0]}")
        return made[0]


def _gloo(store: Store, rank: int, world: int, host: str) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # noqa: SLF001
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]  # noqa: SLF001
    options._timeout = timedelta(seconds=TIMEOUT_S)  # noqa: SLF001
    return ProcessGroupGloo(store, rank, world, options)


def _leave_to_a_thread(things: list[object]) -> None:
    """Let go of ``things``, whose ends may block for as long as the group's timeout."""
    thread = threading.Thread(target=things.clear, name="elasticps-reaper", daemon=True)
    thread.start()


def until_reaped(timeout_s: float) -> None:
    """Wait for groups that are being let go: a process that exits before them may abort."""
    deadline = time.monotonic() + timeout_s
    for thread in threading.enumerate():
        if thread.name == "elasticps-reaper" and thread.is_alive():  # else it is not started yet
            thread.join(max(0.0, deadline - time.monotonic()))
