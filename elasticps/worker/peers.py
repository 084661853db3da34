"""A worker among its peers, on the data loop: where it listens, who they are, fetching from them.

Where each worker listens is a note on the job's bulletin, which the ledger keeps and prunes:
nothing here lives in a process that may die with a worker.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

import torch

from elasticps.core.commands import Found, Lookup, Publish, Published
from elasticps.core.ids import Generation, JobKey, Round, WorkerId
from elasticps.errors import JobFailed, PeerUnavailable, UsageError, WireError
from elasticps.wire.address import Address
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.inflight import Reply
from elasticps.wire.listener import listen
from elasticps.wire.machine import this_machine
from elasticps.wire.messages import FetchMeta, PeerNote, ShelfMeta, decode, encode
from elasticps.wire.pool import ConnectionPool
from elasticps.wire.tensors import bytes_of, dtype_named
from elasticps.wire.traffic import PeerTraffic
from elasticps.worker.block_calls import together
from elasticps.worker.client import HELD_TIMEOUT_S, Client
from elasticps.worker.credentials import CurrentAccess, Listening, ToPeers
from elasticps.worker.shelf import Shelf, ShelfSession

NOTE = "peer"
LOOPBACK = "127.0.0.1"
FIRST_BYTES = 256 << 10
"""How much of a tensor is asked for before its size is known."""
PART_BYTES = 16 << 20
"""How much of the rest goes into one answer."""
MAX_TENSOR_BYTES = 1 << 40


class Peers:
    """``async with`` it before the worker joins: its note is there when it becomes a member."""

    def __init__(
        self,
        client: Client,
        cluster: str,
        job: JobKey,
        worker: WorkerId,
        place: Place,
        access: CurrentAccess | None = None,
    ) -> None:
        self.shelf = Shelf()
        self.traffic = PeerTraffic()
        self.members: tuple[WorkerId, ...] = ()
        self._access = access
        self._listening = Listening(access, worker) if access else None
        self._client = client
        self._cluster = cluster
        self._job = job
        self._worker = worker
        self._place = place
        self._generation = Generation(0)
        self._notes: dict[WorkerId, PeerNote] = {}
        self._machine = place.machine
        self._pool: ConnectionPool[WorkerId] = ConnectionPool(
            cluster,
            str(worker),
            self._address_of,
            ToPeers(access, lambda peer: self._notes[peer]) if access else None,
            self.traffic,
        )
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        own = self._listening
        try:
            listening = [
                await self._stack.enter_async_context(
                    listen(
                        address,
                        lambda _: self._session(),
                        tls=own.context if own else None,
                        shared=self._place.shared,
                        traffic=self.traffic.of(address, tls=own is not None),
                    )
                )
                for address in (Address.tcp(self._place.host, 0), self._place.socket(self._worker))
            ]
            tcp, unix = (str(each.address) for each in listening)
            note = PeerNote(tcp, unix, self._machine, own.certificate if own else b"")
            answer = await self._client.ledger(lambda worker: Publish(worker, NOTE, encode(note)))
        except BaseException:
            await self.__aexit__()
            raise
        if not isinstance(answer, Published):
            raise JobFailed(f"an unexpected answer: {answer}", where="the job's ledger")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()
        await self._stack.aclose()

    def _session(self) -> ShelfSession:
        return ShelfSession(self._cluster, self._job, self.shelf, self._listening)

    def sum_host(self) -> str:
        """Where sums of the members may listen for each other, who encrypt nothing.

        Raises UsageError where the network would see them and the daemon does not allow that.
        """
        if self._access is None:
            return self._place.host
        if all(note.machine == self._machine for note in self._notes.values()):
            return LOOPBACK
        if not self._access().plain_all_reduce:
            raise UsageError(
                "the workers are on several machines, and gloo's sums cross the network readable",
                field="strategy",
                hint="a strategy without sums, as gossip or data-parallel; or daemons with"
                " --allow-plain-all-reduce, in a network that is trusted with them",
            )
        return self._place.host

    async def meet(self, generation: Generation) -> None:
        """Know who the members of ``generation`` are, and where. Raises PeerUnavailable.

        That is also for a generation that is over.
        """
        if generation == self._generation:
            return
        found = await self._client.ledger(lambda worker: Lookup(worker, NOTE))
        if not isinstance(found, Found):
            raise JobFailed(f"an unexpected answer: {found}", where="the job's ledger")
        if found.generation != generation:
            raise PeerUnavailable(f"generation {generation} is over", where="the job's ledger")
        self._notes = {worker: _note(note) for worker, note in found.notes.items()}
        self.members, self._generation = found.members, generation
        self._pool.forget_unlisted()

    def _address_of(self, worker: WorkerId) -> Address | None:
        note = self._notes.get(worker)
        if note is None:
            return None
        return Address.parse(note.unix if note.machine == self._machine else note.tcp)

    async def fetch(self, peer: WorkerId, round_: Round, key: str) -> torch.Tensor:
        """A tensor of ``peer``'s shelf, once it is there. Raises PeerUnavailable, at once when
        the peer is gone, and when the round is over there.
        """
        if peer == self._worker:
            raise PeerUnavailable("a worker is no peer of its own", where=str(peer))
        first = await self._part(peer, round_, FetchMeta(key, 0, FIRST_BYTES), None)
        meta = decode(first.meta, ShelfMeta)
        tensor = _room_for(meta)
        if not tensor.numel():
            return tensor
        view = bytes_of(tensor)
        got = len(first.payload or b"")
        if got != min(FIRST_BYTES, meta.nbytes):
            raise WireError(
                f"{got} of {meta.nbytes} bytes", where=str(peer), field="payload_length"
            )
        view[:got] = first.payload or b""
        starts = range(got, meta.nbytes, PART_BYTES)
        bounds = [(start, min(start + PART_BYTES, meta.nbytes)) for start in starts]
        await together(
            self._part(peer, round_, FetchMeta(key, start, stop), view[start:stop])
            for start, stop in bounds
        )
        return tensor

    async def _part(
        self, peer: WorkerId, round_: Round, part: FetchMeta, into: memoryview | None
    ) -> Reply:
        connection = await self._pool.connection(peer)
        reply = await connection.request(
            Header(Kind.FETCH, job=self._job, worker=self._worker, round=round_),
            encode(part),
            into=into,
            timeout_s=HELD_TIMEOUT_S,
        )
        if reply.header.status is not Status.OK:
            raise PeerUnavailable(f"round {round_} is over there", where=f"worker {peer}")
        if into is not None and (reply.payload is None or len(reply.payload) != len(into)):
            raise WireError("a part of another size", where=f"worker {peer}", field="stop")
        return reply


class Place:
    """Where a worker listens: at ``host`` for other machines, in ``directory`` for its own.

    The directory is the daemon's. A killed worker leaves its socket there; the next one removes it.
    ``shared``: workers are users of their own, which have a group in common. ``machine`` is that of
    who can reach the directory, by default of this process.
    """

    def __init__(
        self, host: str, directory: Path, *, shared: bool = False, machine: str | None = None
    ) -> None:
        self.host = host
        self.shared = shared
        self.machine = machine or this_machine()
        self._directory = directory

    def socket(self, worker: WorkerId) -> Address:
        for path in self._directory.glob("peer-*.sock"):
            pid = path.stem.split("-")[1]
            if pid.isdigit() and not Path("/proc", pid).exists():
                path.unlink(missing_ok=True)
        return Address.unix(self._directory / f"peer-{os.getpid()}-{worker}.sock")


def _note(note: bytes) -> PeerNote:
    """Raises WireError where a peer has published something else."""
    return decode(note, PeerNote)


def _room_for(meta: ShelfMeta) -> torch.Tensor:
    """Raises WireError where the numbers do not agree with each other."""
    try:
        dtype = dtype_named(meta.dtype)
    except ValueError as error:
        raise WireError(str(error), field="dtype") from None
    size = dtype.itemsize
    for length in meta.shape:
        size *= length
    if size != meta.nbytes or size > MAX_TENSOR_BYTES or any(each < 0 for each in meta.shape):
        raise WireError(f"{meta.shape} of {meta.dtype} in {meta.nbytes} bytes", field="shape")
    return torch.empty(meta.shape, dtype=dtype)
