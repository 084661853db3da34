"""Model parallelism: the model's layers over several workers, as the stages of pipelines.

Every worker is lent samples as ever. In a pipeline all of them go to the first stage, their targets
to the last one; each stage pushes the gradients of its own layers, and reads those alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import torch

from elasticps.api.pipeline import Pipeline
from elasticps.api.strategy import Strategy, Worker
from elasticps.errors import MembershipChanged, PeerUnavailable, UsageError
from elasticps.strategies.crew import Crew, crew_of, hands_in_for
from elasticps.strategies.cut import rows_of_microbatches
from elasticps.strategies.division import (
    MB,
    Divider,
    Division,
    MembersJoined,
    first_trained,
    microbatch_of,
)
from elasticps.strategies.flat import flattened, pieces
from elasticps.strategies.notes import fetch, gather, hear, key_of, put, tell
from elasticps.strategies.stage import SCHEDULES, Shapes, StageGroup, run_stage


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A pipeline's batch: how many rows each worker gave, by its place in the crew.

    ``shape`` and ``dtype`` are one row's.
    """

    counts: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def rows(self) -> int:
        return sum(self.counts)


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that has gone through this worker's pipeline; ``loss`` is the mean of its samples."""

    crew: Crew
    division: Division
    batch: Batch
    loss: float


class ModelParallel(Strategy):
    """``stages`` workers a pipeline, as many pipelines as there are workers for; 0: one pipeline.

    A pipeline's batch goes through in ``microbatches`` (0: two for each stage), by ``schedule``:
    ``gpipe`` (Huang et al. 2019), or ``1f1b`` (Narayanan et al. 2019, "PipeDream", section 3.2,
    flushed at each step). The update is the one of a single process on the whole batch. ``memory``
    is what a worker may use for its stage, in MiB; 0: what is free.
    """

    uses_peers = True
    uses_pipeline = True

    def __init__(
        self, stages: int = 0, microbatches: int = 0, schedule: str = "1f1b", memory: int = 0
    ) -> None:
        numbers = {"stages": stages, "microbatches": microbatches, "memory": memory}
        for field, number in numbers.items():
            if not isinstance(number, int) or number < 0:
                raise UsageError(f"{field} of {number!r}", field=field, limit="0 and more")
        if schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise UsageError(f"no schedule {schedule!r}", field="schedule", limit=known)
        self._stages = stages
        self._microbatches = microbatches
        self._schedule = schedule
        self._divider = Divider(schedule, memory * MB)
        self._held = range(0)
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None
        self._pass: Pass | None = None

    def begin(self, worker: Worker) -> None:
        if worker.consistency != "sync" or worker.backup_workers:
            raise UsageError(
                "a pipeline's stages step together",
                field="consistency",
                limit="sync consistency without backup workers",
            )

    # -- what a script and its run do -----------------------------------------------------------

    def forward_backward(
        self, worker: Worker, inputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        if self._pass is not None:
            raise UsageError(
                "forward_backward() was called twice before optimizer.step()",
                field="forward_backward",
                hint="a pipeline takes one batch a step; use larger batches",
            )
        self._given = inputs.detach(), targets.detach()
        self._pass = self._passed(worker)
        return torch.tensor(self._pass.loss)

    def step(self, worker: Worker) -> None:
        if self._pass is None:
            raise UsageError(
                "a step without forward_backward()",
                field="forward_backward",
                hint="loss = pipeline.forward_backward(x, y), then optimizer.step()",
            )
        self._finish(worker, self._pass)

    def abstain(self, worker: Worker) -> None:
        """Without samples a worker is a stage all the same."""
        self._finish(worker, self._passed(worker))

    def end(self, worker: Worker) -> None:
        """A model that was built whole is whole again; any other is where its stages are."""
        pipeline = worker.pipeline
        if pipeline.was_whole:
            self._held = range(len(pipeline.layers))
            pipeline.hold(self._held)
            worker.refresh(list(_names(pipeline, self._held)))

    # -- a round --------------------------------------------------------------------------------

    def _finish(self, worker: Worker, done: Pass) -> None:
        """Push what there is and agree; where the members change first, all anew with those."""
        while not self._is_agreed(worker, done):
            done = self._passed(worker)
        self._pass = self._given = None
        worker.refresh(list(_names(worker.pipeline, self._held)))

    def _is_agreed(self, worker: Worker, done: Pass) -> bool:
        try:
            updates = self._updates(worker, done)
        except (PeerUnavailable, MembershipChanged):
            worker.regroup()
            return False
        return worker.agree(updates, weight=float(self._rows) or None)

    def _passed(self, worker: Worker) -> Pass:
        while True:
            try:
                return self._attempt(worker)
            except MembersJoined:
                continue
            except (PeerUnavailable, MembershipChanged):
                worker.regroup()

    def _attempt(self, worker: Worker) -> Pass:
        """The batch through the pipeline, once; nothing is lost where this raises."""
        crew = self._crew(worker)
        self._hand_over(worker)
        inputs, batch = self._gathered(worker, crew)
        sample, count = microbatch_of(inputs, self._parts(crew))
        division = self._divider.division(worker, crew, self._held, sample, count)
        stage = crew.stage_of(worker.rank)
        self._own(worker, division.layers(stage))
        self._clear_gradients(worker)
        loss = float("nan")
        if batch.rows:
            total = None if stage is None else self._through_stage(worker, crew, batch, inputs)
            loss = _shared(worker, crew, total) / batch.rows
        for gradient in self._gradients(worker).values():
            gradient.div_(batch.rows)
        return Pass(crew=crew, division=division, batch=batch, loss=loss)

    @property
    def _rows(self) -> int:
        """How many samples this worker gives."""
        return len(self._given[0]) if self._given else 0

    def _crew(self, worker: Worker) -> Crew:
        most = len(worker.pipeline.layers) - first_trained(worker.pipeline)
        return crew_of(worker.rank, worker.world, min(self._stages or worker.world, most))

    def _parts(self, crew: Crew) -> int:
        """Microbatches, where there are samples enough."""
        return self._microbatches or 2 * crew.stages

    # -- samples --------------------------------------------------------------------------------

    def _hand_over(self, worker: Worker) -> None:
        inputs, targets = self._given or (torch.empty(0), torch.empty(0))
        put(worker, "inputs", inputs)
        put(worker, "targets", targets)

    def _gathered(self, worker: Worker, crew: Crew) -> tuple[torch.Tensor | None, Batch]:
        """The pipeline's batch: its inputs in the first stage, what all must know of it."""
        if worker.rank != crew.head:
            return None, hear(worker, crew.head, "batch", Batch)
        mine = self._given[0] if self._given else torch.empty(0)
        parts = gather(worker, crew.ranks, "inputs", mine)
        inputs = _joined(parts)
        batch = Batch(
            counts=tuple(len(part) for part in parts),
            shape=tuple(inputs.shape[1:]),
            dtype=str(inputs.dtype).removeprefix("torch."),
        )
        tell(worker, "batch", batch)
        return inputs, batch

    def _through_stage(
        self, worker: Worker, crew: Crew, batch: Batch, inputs: torch.Tensor | None
    ) -> float | None:
        """This worker's part of the pass; in the last stage, the sum of the samples' losses."""
        pipeline, targets = worker.pipeline, None
        rows, real = rows_of_microbatches(batch.rows, self._parts(crew))
        dtype = getattr(torch, batch.dtype)
        sample = torch.empty((len(rows[0]), *batch.shape), dtype=dtype, device="meta")
        borders = self._divider.trace(pipeline, sample).borders
        if worker.rank == crew.tail:
            mine = self._given[1] if self._given else torch.empty(0)
            targets = _joined(gather(worker, crew.ranks, "targets", mine))
        left = iter(real)

        def loss_of(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            count = next(left)  # both schedules come to the losses in the microbatches' order
            return pipeline.loss_fn(outputs[:count], wanted[:count]) * count

        order = torch.tensor(rows).flatten()
        ranks = crew.ranks[: crew.stages]
        prefix = key_of(worker, "pass")
        with StageGroup(worker.peers, ranks, ranks.index(worker.rank), prefix) as group:
            losses = run_stage(
                group,
                [pipeline.layers[layer] for layer in self._held],
                Shapes(inputs=borders[self._held.start], outputs=borders[self._held.stop]),
                len(rows),
                self._schedule,
                loss_of,
                inputs=None if inputs is None else inputs[order],
                targets=None if targets is None else targets[order],
            )
        return float(sum(losses)) if losses else None

    # -- layers ---------------------------------------------------------------------------------

    def _own(self, worker: Worker, layers: range) -> None:
        """Hold these layers and no others, as the shards have them."""
        pipeline = worker.pipeline
        pipeline.drop(layer for layer in range(len(pipeline.layers)) if layer not in layers)
        new = [layer for layer in layers if layer not in self._held]
        # What is interrupted here is to be read again: it is not held before it has been.
        self._held = range(0) if new else layers
        pipeline.hold(new)
        worker.refresh(list(_names(pipeline, new)))
        self._held = layers
        worker.prefer_here(list(_names(pipeline, layers)))

    def _clear_gradients(self, worker: Worker) -> None:
        for name in _names(worker.pipeline, self._held):
            worker.parameters[name].grad = None

    def _gradients(self, worker: Worker) -> dict[str, torch.Tensor]:
        named = {name: worker.parameters[name].grad for name in _names(worker.pipeline, self._held)}
        return {name: gradient for name, gradient in named.items() if gradient is not None}

    # -- gradients to the shards ----------------------------------------------------------------

    def _updates(self, worker: Worker, done: Pass) -> dict[str, torch.Tensor]:
        """What this worker pushes: of its own stage, and of stages that have no samples.

        The shards take the mean by each worker's own rows. So a pipeline's gradient, of which one
        worker pushes each part, is scaled by how many rows more it stands for.
        """
        crew, batch = done.crew, done.batch
        contributors = [rank for rank, count in zip(crew.ranks, batch.counts, strict=True) if count]
        hands = hands_in_for(contributors, crew.ranks[: crew.stages]) if contributors else {}
        if worker.rank in hands:
            put(worker, "gradient", self._whole_gradient(worker))
        if not self._rows:
            return {}
        updates = self._gradients(worker) | _on_behalf(worker, done, hands)
        for update in updates.values():
            update.mul_(batch.rows / self._rows)
        return updates

    def _whole_gradient(self, worker: Worker) -> torch.Tensor:
        """The stage's in one piece, with zeros where the loss does not depend on a parameter."""
        items = [worker.parameters[name] for name in _names(worker.pipeline, self._held)]
        return flattened([torch.zeros_like(i) if i.grad is None else i.grad for i in items])


def _on_behalf(worker: Worker, done: Pass, hands: Mapping[int, int]) -> dict[str, torch.Tensor]:
    """The gradients of stages whose workers have no samples, as far as this one pushes them."""
    updates = {}
    for rank in (rank for rank, by in hands.items() if by == worker.rank):
        layers = done.division.layers(done.crew.stage_of(rank))
        names = list(_names(worker.pipeline, layers))
        items = [worker.parameters[name] for name in names]
        parts = pieces(fetch(worker, rank, "gradient"), items)
        for name, item, part in zip(names, items, parts, strict=True):
            updates[name] = part.to(item.dtype)
    return updates


def _shared(worker: Worker, crew: Crew, total: float | None) -> float:
    """The sum of the losses, which the last stage has, told to all of the pipeline."""
    if total is None:
        return float(fetch(worker, crew.tail, "loss"))
    put(worker, "loss", torch.tensor(total, dtype=torch.float64))
    return total


def _names(pipeline: Pipeline, layers: Sequence[int]) -> Iterator[str]:
    for layer in layers:
        yield from pipeline.names(layer)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Those that have rows, in the order of ranks."""
    full = [part for part in parts if len(part)]
    return torch.cat(full) if full else torch.empty(0)
