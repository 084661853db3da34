"""What a strategy may do with other workers, on the script's thread (``api.strategy.Peers``)."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch

from elasticps.core.commands import Turn
from elasticps.core.ids import Round
from elasticps.errors import MembershipChanged
from elasticps.worker.block_calls import together
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.exchange import Exchange
from elasticps.worker.group import Group, Rendezvous, until_reaped
from elasticps.worker.peers import Peers

Result = TypeVar("Result")
REAP_TIMEOUT_S = 5.0


class PeerCalls:
    """Each call is of the turn under way, and ends with its generation."""

    def __init__(self, loop: DataLoop, exchange: Exchange, peers: Peers) -> None:
        self._loop = loop
        self._exchange = exchange
        self._peers = peers
        self._group: Group | None = None
        self._group_of: Turn | None = None
        self._over: Future[None] | None = None

    @property
    def members(self) -> tuple[int, ...]:
        self._call(self._met())
        return self._peers.members

    def put(self, key: str, tensor: torch.Tensor) -> None:
        self._loop.call(self._put(self._turn.round, key, tensor))

    def fetch(self, rank: int, key: str) -> torch.Tensor:
        return self.fetch_all({rank: key})[rank]

    def fetch_all(self, wanted: Mapping[int, str]) -> dict[int, torch.Tensor]:
        return self._call(self._fetched(wanted))

    def start_fetch(self, rank: int, key: str) -> _Fetching:
        wanted = self._fetched({rank: key})
        work = self._loop.start(self._exchange.unless_regenerated(wanted))
        return _Fetching(work, rank)

    def sum(self, tensor: torch.Tensor) -> None:
        self._group_now().sum(tensor)
        self._peers.traffic.summed(tensor.nbytes, self._turn.world)

    def begin_round(self) -> None:
        """A round is over: what was put for it is not kept any longer."""
        self._loop.start(self._begin(self._turn.round))

    def close(self) -> None:
        """Let go of the group, and wait a little for that. Idempotent."""
        self._drop()
        until_reaped(REAP_TIMEOUT_S)

    # -- on the data loop -----------------------------------------------------------------------

    async def _met(self) -> None:
        await self._peers.meet(self._turn.generation)

    async def _put(self, round_: Round, key: str, tensor: torch.Tensor) -> None:
        self._peers.shelf.put(round_, key, tensor)

    async def _begin(self, round_: Round) -> None:
        self._peers.shelf.begin(round_)

    async def _fetched(self, wanted: Mapping[int, str]) -> dict[int, torch.Tensor]:
        peers, round_ = self._peers, self._turn.round
        await self._met()
        fetching = [peers.fetch(peers.members[rank], round_, key) for rank, key in wanted.items()]
        return dict(zip(wanted, await together(fetching), strict=True))

    # -- the group ------------------------------------------------------------------------------

    def _group_now(self) -> Group:
        """The group of this generation."""
        turn = self._turn
        known = self._group_of
        if self._group is None or known is None or known.generation != turn.generation:
            self._drop()
            self._call(self._met())
            host = self._peers.sum_host()
            self._over = self._loop.start(self._exchange.until_regenerated())
            over = self._over
            rendezvous = Rendezvous(partial(self._leave, turn), partial(self._ask, turn))
            self._group = Group(rendezvous, turn.rank, turn.world, host, over.done)
            self._group_of = turn
        return self._group

    def _drop(self) -> None:
        if self._over is not None:
            self._over.cancel()
        if self._group is not None:
            self._group.drop()
        self._group = self._over = None

    def _leave(self, turn: Turn, key: str, value: bytes) -> None:
        kept = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        self._loop.call(self._put(turn.round, f"group/{turn.generation}/{key}", kept))

    def _ask(self, turn: Turn, rank: int, key: str) -> bytes:
        return bytes(self.fetch(rank, f"group/{turn.generation}/{key}").numpy().tobytes())

    # -- both -----------------------------------------------------------------------------------

    @property
    def _turn(self) -> Turn:
        return self._exchange.member_turn

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The work's result, unless the generation ends first. Raises MembershipChanged then."""
        done = self._loop.call(self._exchange.unless_regenerated(_boxed(work)))
        if done is None:
            raise MembershipChanged("the set of workers changed")
        return done[0]


class _Fetching:
    """A fetch on the data loop."""

    def __init__(self, work: Future[dict[int, torch.Tensor] | None], rank: int) -> None:
        self._work = work
        self._rank = rank

    def wait(self) -> torch.Tensor:
        try:
            fetched = self._work.result()
        except BaseException:
            self._work.cancel()
            raise
        if fetched is None:
            raise MembershipChanged("the set of workers changed")
        return fetched[self._rank]

    def cancel(self) -> None:
        self._work.cancel()


async def _boxed(work: Coroutine[Any, Any, Result]) -> tuple[Result]:
    return (await work,)
