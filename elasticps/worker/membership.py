"""A worker's connections while it is a member of its job: to shard servers, ledger and peers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from elasticps.api.chosen_strategy import ChosenStrategy
from elasticps.api.pipeline import Pipeline
from elasticps.core.audit import Verdict
from elasticps.core.blocks import Model
from elasticps.core.commands import Cut
from elasticps.wire.control_messages import JobInfo, Welcome
from elasticps.wire.messages import StateMeta
from elasticps.wire.traffic import PeerTraffic
from elasticps.worker.agent import Agent
from elasticps.worker.checkpoints import Checkpoints
from elasticps.worker.client import Client
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.exchange import Exchange
from elasticps.worker.parameters import BlockMemory
from elasticps.worker.peer_calls import PeerCalls
from elasticps.worker.peers import Peers, Place
from elasticps.worker.unit import MACHINE_VARIABLE, SOCKETS_VARIABLE


class Membership:
    """Opened by ``enter`` on the data loop's behalf, closed by ``aclose`` whatever came of it."""

    def __init__(self, loop: DataLoop, agent: Agent, welcome: Welcome) -> None:
        self.peer_calls: PeerCalls | None = None
        self._loop = loop
        self._agent = agent
        self._welcome = welcome
        self._client: Client | None = None
        self._exchange: Exchange | None = None
        self._peers: Peers | None = None
        self._checkpoints: Checkpoints | None = None

    @property
    def is_entered(self) -> bool:
        return self._exchange is not None

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes to and from shard servers, by transport."""
        return self._client.traffic if self._client is not None else {}

    @property
    def peer_traffic(self) -> PeerTraffic:
        """What went to other workers and came from them."""
        return self._peers.traffic if self._peers is not None else PeerTraffic()

    @property
    def exchange(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    @property
    def checkpoints(self) -> Checkpoints:
        assert self._checkpoints is not None
        return self._checkpoints

    def enter(
        self,
        job: JobInfo,
        described: Model,
        memory: Sequence[BlockMemory],
        strategy: ChosenStrategy,
        pipeline: Pipeline | None,
    ) -> None:
        """Describe the model, connect, join the ledger; the first worker gives the values."""
        checkpoints = self._checkpoints = Checkpoints(described, memory)
        first_values = None if pipeline is None else pipeline.first_values()

        def restore() -> tuple[Sequence[tuple[StateMeta, memoryview]], Cut]:
            if pipeline is not None:  # a checkpoint is read whole
                pipeline.hold(range(len(pipeline.layers)))
            return checkpoints.resume(job)

        async def join() -> Exchange:
            await self._agent.describe(described)
            welcome = self._welcome
            client = self._client = Client(
                self._agent, welcome.cluster, welcome.job, welcome.worker
            )
            exchange = Exchange(client, job, described, memory)
            if strategy.wants_peers:
                self._peers = await self._listen(client).__aenter__()
            try:
                await exchange.join(restore if job.resume else None, first_values)
            except BaseException:
                await exchange.aclose()
                raise
            return exchange

        self._exchange = exchange = self._loop.call(join())
        checkpoints.check(job, exchange)
        if self._peers is not None:
            self.peer_calls = PeerCalls(self._loop, exchange, self._peers)

    def _listen(self, client: Client) -> Peers:
        welcome, agent = self._welcome, self._agent
        own = os.environ.get(SOCKETS_VARIABLE)
        place = Place(
            agent.host,
            Path(own) if own else agent.directory,
            shared=own is not None,
            machine=os.environ.get(MACHINE_VARIABLE),
        )
        access = agent.current_access if agent.access else None
        return Peers(client, welcome.cluster, welcome.job, welcome.worker, place, access)

    async def farewell(self) -> Verdict | None:
        """Audit if the job asks for it, then leave the ledger, unless that was done."""
        exchange = self._exchange
        if exchange is None:  # it has pushed nothing
            return Verdict() if self._welcome.audit else None
        verdict = await exchange.audit() if self._welcome.audit else None
        if exchange.turn is not None:
            await exchange.leave()
        return verdict

    async def aclose(self) -> None:
        """Close the connections. On the data loop."""
        if self._exchange is not None:
            await self._exchange.aclose()
        if self._peers is not None:
            await self._peers.__aexit__()
        if self._client is not None:
            await self._client.aclose()

    def close(self) -> None:
        """Close what has threads of its own. Not on the data loop."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self.peer_calls is not None:
            self.peer_calls.close()
