"""A job's model and its workers as tests have them: real exchanges, fed by the test itself."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import nn

from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.core.blocks import Hyperparameters, Model
from elasticps.core.ids import BlockId, WorkerId
from elasticps.wire.connection import Connection
from elasticps.wire.control_messages import Control, JobInfo
from elasticps.wire.inflight import Reply
from elasticps.worker.agent import Agent
from elasticps.worker.client import Call, Client
from elasticps.worker.exchange import Exchange
from elasticps.worker.parameters import BlockMemory, describe, memory_of

Gradients = Sequence[torch.Tensor | None]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A model and its optimizer, the same for all of a job's workers and for a local run."""

    shapes: tuple[tuple[int, ...], ...] = ((1500,), (7, 9), ())
    optimizer: str = "sgd"
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.1})
    dtype: torch.dtype = torch.float32
    block_bytes: int = 4096
    zeros: bool = False
    """Begin with zeros in place of random values."""

    def parameters(self, seed: int = 0) -> list[nn.Parameter]:
        """The initial values. Another ``seed`` stands for a worker that drew its own."""
        values = self.full(0.0) if self.zeros else self.random(seed)
        return [nn.Parameter(item) for item in values]

    def random(self, seed: int) -> list[torch.Tensor]:
        """A tensor for each parameter, equal for equal seeds."""
        random = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=random).to(self.dtype) for shape in self.shapes]

    def full(self, value: float) -> list[torch.Tensor]:
        return [torch.full(shape, value, dtype=self.dtype) for shape in self.shapes]

    @property
    def plugin(self) -> Optimizer:
        return _plugin(self.optimizer)

    def local(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return self.plugin.create([{"params": list(parameters)}], self.options)

    @property
    def model(self) -> Model:
        parameters = self.parameters()
        return describe(
            [(f"p{index}", item) for index, item in enumerate(parameters)],
            self.local(parameters).param_groups,
            optimizer=self.optimizer,
            options=self.options,
            elementwise=self.plugin.elementwise,
            block_bytes=self.block_bytes,
        )


@functools.cache
def _plugin(name: str) -> Optimizer:
    return load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]


class LocalRun:
    """The same training in one process: what a job must come to."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.parameters = blueprint.parameters()
        self.optimizer = blueprint.local(self.parameters)

    def step(self, pushes: Sequence[tuple[Gradients, float]]) -> None:
        """One step with the mean of the gradients by weight; a missing one counts as zeros."""
        total = sum(weight for _, weight in pushes)
        for index, parameter in enumerate(self.parameters):
            shares = [
                gradient * (weight / total)
                for gradients, weight in pushes
                if (gradient := gradients[index]) is not None
            ]
            parameter.grad = functools.reduce(torch.add, shares) if shares else None
        self.optimizer.step()


class StandInAgent(Agent):
    """An agent without a daemon: the test says to it what a daemon would."""

    def hear(self, message: Control) -> None:
        self._on_message(cast("Connection", None), message)


class Member:
    """One life of one worker, without a process: its parameters and its real exchange."""

    def __init__(
        self, cluster: str, info: JobInfo, worker: WorkerId, blueprint: Blueprint, seed: int
    ) -> None:
        self.id = worker
        self.agent = StandInAgent()
        self.parameters = blueprint.parameters(seed)
        self.client = Client(self.agent, cluster, info.job, worker)
        model = blueprint.model
        self.exchange = Exchange(self.client, info, model, memory_of(model, self.parameters))
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- life -----------------------------------------------------------------------------------

    def start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Do ``work`` as this worker: it ends with the worker's life."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def die(self) -> None:
        """As a killed process: all that it does ends, its connections are reset."""
        for connection in list(self.client._pool._connections.values()):
            connection.abort()
        await self._stop()
        await self.exchange.aclose()

    async def aclose(self) -> None:
        await self._stop()
        await self.exchange.aclose()
        await self.client.aclose()

    async def _stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- a worker's acts ------------------------------------------------------------------------

    async def join(self) -> None:
        await self.exchange.join()

    def give(
        self,
        gradients: Gradients,
        *,
        weight: float = 1.0,
        hyper: Sequence[Hyperparameters] | None = None,
        leaving: bool = False,
    ) -> None:
        """Have these gradients in hand, numbered as the next push."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        exchange = self.exchange
        exchange.weight, exchange.leaving = weight, leaving
        if hyper is not None:
            exchange.hyper = hyper
        exchange.begin()

    async def step(
        self,
        gradients: Gradients,
        *,
        weight: float = 1.0,
        hyper: Sequence[Hyperparameters] | None = None,
        leaving: bool = False,
    ) -> None:
        """Carry out one round as a worker of the data-parallel strategy does."""
        self.give(gradients, weight=weight, hyper=hyper, leaving=leaving)
        await self.exchange.round()

    async def stage(self, memory: BlockMemory) -> bool:
        """Push the gradient in hand of one block alone; True once every replica holds the round."""
        turn = self.exchange.turn
        assert turn is not None
        return await self.exchange._push(memory, turn)

    async def ask(self, call: Call) -> Reply:
        """Any one request, to whoever leads the block."""
        return await self.client.call(call)

    # -- what it sees ---------------------------------------------------------------------------

    @property
    def blocks(self) -> list[BlockId]:
        return [memory.block.id for memory in self.exchange._memory]

    def values(self) -> list[torch.Tensor]:
        """The parameters as of now, copied."""
        return [item.detach().clone() for item in self.parameters]


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do all at once; the first error ends the rest."""
    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(one) for one in work]
    return [task.result() for task in begun]
