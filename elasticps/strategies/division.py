"""Which layers are whose: what rank 0 decides for a generation of workers, and the others hear."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NoReturn

import msgspec
import torch

from elasticps.api.pipeline import Pipeline
from elasticps.api.strategy import Worker
from elasticps.errors import UsageError
from elasticps.strategies.crew import Crew, crew_of
from elasticps.strategies.cut import best_cut, rows_of_microbatches
from elasticps.strategies.layer_costs import Trace, timed, traced
from elasticps.strategies.notes import gather, hear, put, tell
from elasticps.strategies.room import room_bytes

log = logging.getLogger(__name__)

MB = 1 << 20
PARAMETER_COPIES = 3
"""Of a stage: the parameters, their gradients, and those once more on their way to the shards.

The optimizer's state is there.
"""


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """``cut`` is the stages' bounds; ``seconds`` each layer's forward, empty if not yet known."""

    cut: tuple[int, ...]
    seconds: tuple[float, ...] = ()

    def layers(self, stage: int | None) -> range:
        """Those of a stage; none for a worker that is in no stage."""
        return range(0) if stage is None else range(self.cut[stage], self.cut[stage + 1])


class NoCut(UsageError):
    """No cut fits the workers' memory."""


class MembersJoined(Exception):
    """The members are others, for whom to decide anew."""


class Divider:
    """One worker's part in that. ``memory``: the bytes that a worker may use; 0: what is free."""

    def __init__(self, schedule: str, memory: int) -> None:
        self._schedule = schedule
        self._memory = memory
        self._division = Division(cut=())
        self._generation: int | None = None
        self._traces: dict[tuple[int, ...], Trace] = {}

    def division(
        self, worker: Worker, crew: Crew, held: Sequence[int], sample: torch.Tensor, count: int
    ) -> Division:
        """The generation's. ``sample`` is rank 0's: a microbatch's inputs, of ``count`` such.

        ``held`` are this worker's layers until now. Rank 0 has been there longest: it knows what
        the layers cost, or measures it. Where no cut fits the workers' memory it
        waits for another worker, and raises MembersJoined; before the job's first round, NoCut.
        """
        if self._generation != worker.generation:
            room = torch.tensor(self._room(worker.pipeline, held), dtype=torch.float64)
            put(worker, "room", room)
            if worker.rank == 0:
                rooms = gather(worker, range(worker.world), "room", room)
                limits = _limits([float(each) for each in rooms], crew.stages)
                try:
                    self._division = self._decided(worker.pipeline, limits, sample, count)
                except NoCut as error:
                    _await_joiner(worker, error)
                tell(worker, "division", self._division)
            else:
                self._division = hear(worker, 0, "division", Division)
            self._generation = worker.generation
        return self._division

    def trace(self, pipeline: Pipeline, microbatch: torch.Tensor) -> Trace:
        """Remembered: the ends of data epochs have other lengths, again and again."""
        key = tuple(microbatch.shape)
        if key not in self._traces:
            self._traces[key] = traced(pipeline.layers, microbatch.to("meta"))
        return self._traces[key]

    def _room(self, pipeline: Pipeline, held: Sequence[int]) -> float:
        """What this worker has for a stage now counts as free."""
        items = [item for layer in held for item in pipeline.trained(layer)]
        gradients = [item.grad for item in items if item.grad is not None]
        taken = sum(tensor.nbytes for tensor in (*items, *gradients))
        return float(self._memory or room_bytes() + taken)

    def _decided(
        self, pipeline: Pipeline, limits: Sequence[float], sample: torch.Tensor, count: int
    ) -> Division:
        sizes = [PARAMETER_COPIES * pipeline.nbytes(at) for at in range(len(pipeline.layers))]
        seconds = self._division.seconds
        if count:
            trace = self.trace(pipeline, sample)
            in_flight = min(count, len(limits)) if self._schedule == "1f1b" else count
            for at, kept in enumerate(trace.kept):
                # What goes to the next stage stays on the shelf until the round is over.
                sizes[at] += kept * in_flight + trace.borders[at + 1].nbytes * count
            seconds = seconds or tuple(timed(pipeline, sample))
        cut = best_cut(
            seconds or [float(size) for size in sizes],
            sizes,
            limits,
            within_first=first_trained(pipeline),
        )
        if cut is None:
            raise NoCut(
                f"no cut of {sum(sizes) / MB:.0f} MiB of layers fits {len(limits)} stages",
                field="memory",
                limit=", ".join(f"{limit / MB:.0f} MiB" for limit in limits),
                hint="more workers, longer pipelines (stages=), or more microbatches",
            )
        return Division(cut=cut, seconds=seconds)


def _await_joiner(worker: Worker, error: NoCut) -> NoReturn:
    """Who is there cannot hold the model: more could once, and may again when one joins."""
    if worker.round == 0:
        raise error
    log.warning("waiting for another worker: %s", error)
    worker.await_joiner(error.what)
    raise MembersJoined


def microbatch_of(inputs: torch.Tensor | None, microbatches: int) -> tuple[torch.Tensor, int]:
    """The first one, and how many there are; none of no inputs."""
    if inputs is None or not len(inputs):
        return torch.empty(0), 0
    rows, _ = rows_of_microbatches(len(inputs), microbatches)
    return inputs[torch.tensor(rows[0])], len(rows)


def first_trained(pipeline: Pipeline) -> int:
    """Up to this layer all must be in the first stage: it has to have a gradient."""
    return next(layer for layer in range(len(pipeline.layers)) if pipeline.names(layer))


def _limits(rooms: Sequence[float], stages: int) -> list[float]:
    """The least room of each stage's workers, over all pipelines."""
    limits = [float("inf")] * stages
    for rank, room in enumerate(rooms):
        stage = crew_of(rank, len(rooms), stages).stage_of(rank)
        if stage is not None:
            limits[stage] = min(limits[stage], room)
    return limits
