"""Several strategies in one job: each trains the parameters whose names match its pattern."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from elasticps.api.chosen_strategy import ChosenStrategy
from elasticps.api.strategy import ServedOptimizer, Strategy, Worker
from elasticps.api.strategy_choice import parse_parts
from elasticps.errors import UsageError
from elasticps.strategies.fiber import Fiber
from elasticps.strategies.part_worker import Act, PartWorker, Request


class ByName(Strategy):
    """``parts``: ``PATTERN=STRATEGY; PATTERN=STRATEGY``; the first that matches a name counts.

    Each part's strategy sees a ``Worker`` that has the part's parameters alone. A step calls them
    one after the other, each until it asks for its round; then there is one round of the job with
    what all of them push. The job's round has as many steps as divide every part's: a part whose
    own has more takes part in one of several, the same one in all workers. What a part does not
    push in a round is "no gradient", which steps nothing. A part whose pushes are applied at once
    needs no round, and has no say in how many steps one has.
    """

    def __init__(self, parts: str = "*=data-parallel") -> None:
        self._parts = [
            _Part(choice.pattern, ChosenStrategy(choice.strategy), str(index))
            for index, choice in enumerate(parse_parts(parts))
        ]
        for part in self._parts:
            if part.strategy.wants_pipeline:
                raise UsageError(
                    f"the strategy of {part.pattern} cuts the whole model into stages",
                    field="strategy",
                    limit="strategies that train what a worker has, where they go by name",
                )
        self.uses_peers = any(part.strategy.wants_peers for part in self._parts)
        self._pushes_always = True
        self._is_published = True
        self._weight_seen = 0.0
        for part in self._parts:
            weakref.finalize(self, part.fiber.close)

    @property
    def steps_per_round(self) -> int:
        spans = [part.strategy.steps_per_round for part in self._parts if not part.at_once]
        return math.gcd(*spans) or 1

    @property
    def is_published(self) -> bool:
        return self._is_published and all(part.strategy.is_published for part in self._parts)

    def served_optimizers(
        self, chosen: ServedOptimizer, names: Sequence[str]
    ) -> Mapping[str, ServedOptimizer]:
        self._share_out(names)
        served: dict[str, ServedOptimizer] = {}
        for part in self._parts:
            served.update(part.strategy.served_optimizers(chosen, part.names))
        return served

    def applied_at_once(self, names: Sequence[str]) -> Collection[str]:
        self._share_out(names)
        return [name for part in self._parts for name in part.at_once]

    def begin(self, worker: Worker) -> None:
        self._share_out(list(worker.parameters))
        span = self.steps_per_round
        for part in self._parts:
            part.join(worker, span)
        # All workers push in a round or none does; what peers agree on comes to that by itself.
        self._pushes_always = not all(
            part.strategy.wants_peers or part.at_once for part in self._parts
        )
        if worker.backup_workers and any(part.worker.periods > 1 for part in self._parts):
            raise UsageError(
                "who was too slow for a round would have to undo a part of its steps",
                field="strategy",
                limit="strategies of equally many steps a round, with backup workers",
            )
        _ = worker.served  # asked for here, so that every exchange keeps what it reads
        self._call(worker, {part: part.strategy.begin for part in self._parts})

    def step(self, worker: Worker) -> None:
        for part in self._parts:
            part.worker.stepped(worker.weight - self._weight_seen)
        self._call(worker, {part: part.strategy.step for part in self._parts}, self._round)
        self._weight_seen = worker.weight

    def abstain(self, worker: Worker) -> None:
        """A part that has steps to hand in waits for a round in which this worker has samples."""
        for part in self._parts:
            part.worker.stepped(0.0)
        due = [part for part in self._parts if part.worker.is_due]
        calls = {
            part: part.strategy.abstain
            for part in due
            if worker.ends_data or not part.worker.weight
        }
        self._call(worker, calls, self._empty_round)
        self._weight_seen = worker.weight

    def membership_changed(self, worker: Worker) -> None:
        self._call(worker, {part: part.strategy.membership_changed for part in self._parts})

    def end(self, worker: Worker) -> None:
        self._call(worker, {part: part.strategy.end for part in self._parts})

    # -- the parts ------------------------------------------------------------------------------

    def _share_out(self, names: Sequence[str]) -> None:
        """Each name is the first part's whose pattern matches. Raises UsageError."""
        patterns = [part.pattern for part in self._parts]
        for part in self._parts:
            part.names = []
        for name in names:
            fitting = [part for part in self._parts if fnmatchcase(name, part.pattern)]
            if not fitting:
                raise UsageError(
                    f"parameter {name} has no strategy: no pattern matches it",
                    field="strategy",
                    limit=", ".join(patterns),
                    hint="a last pattern * is for all that are left",
                )
            fitting[0].names.append(name)
        for part in self._parts:
            if not part.names:
                raise UsageError(
                    f"no parameter is left for the pattern {part.pattern}",
                    field="strategy",
                    limit=", ".join(names),
                    hint="of several patterns that match a name the first counts",
                )

    def _call(
        self,
        worker: Worker,
        calls: Mapping[_Part, Callable[[Worker], None]],
        make_round: Callable[[Worker], bool] | None = None,
    ) -> None:
        """Make the calls, each on its part's fiber, and the round that they ask for."""
        try:
            for part, call in calls.items():
                part.begin(call)
            self._run(worker)
            while make_round is not None and not make_round(worker):
                self._run(worker)
            for part in self._parts:
                part.worker.may_ask = False
            self._run(worker)
        except BaseException:
            for part in self._parts:
                part.fiber.close()
            raise

    def _run(self, worker: Worker) -> None:
        """Let each part go on until its call is over or waits for the round.

        In their order, also where they begin anew: what they sum with peers must be in the same
        order in all workers.
        """
        while part := next((part for part in self._parts if part.can_go_on), None):
            part.fiber.resume()
            request = part.worker.open_request
            if request is not None and not request.is_round:
                if request.act is Act.REGROUP:
                    worker.regroup()
                else:
                    worker.await_change()
                part.worker.settle(answer=True)
                self._begin_anew()

    def _begin_anew(self) -> None:
        """The members have changed: who has agreed with them has not."""
        for part in self._parts:
            request = part.worker.open_request
            if request is not None and request.act is Act.AGREE:
                part.worker.settle(answer=False)

    # -- the round ------------------------------------------------------------------------------

    def _round(self, worker: Worker) -> bool:
        """Make the round that the parts ask for, if any. False where they must begin anew."""
        asked = self._asked()
        if not asked and worker.steps_left > 0 and not worker.leaving:
            return True
        updates: dict[str, torch.Tensor] = {}
        weights: dict[str, float] = {}
        for request in asked:
            updates.update(request.updates)
            weights.update(request.weights)
        if any(request.act is Act.AGREE for request in asked):
            pushes = updates if updates or self._pushes_always else None
            return self._agree(worker, asked, pushes, weights)
        reads = [name for request in asked for name in request.reads]
        ticket = worker.start_exchange(updates, weight=weights, pull=reads)
        self._settle(worker, counted=ticket.wait())
        return True

    def _empty_round(self, worker: Worker) -> bool:
        """A round in which this worker has no samples."""
        asked = self._asked()
        if any(request.act is Act.AGREE for request in asked):
            return self._agree(worker, asked, None, {})
        worker.abstain(pull=[name for request in asked for name in request.reads])
        self._settle(worker, counted=True)
        return True

    def _agree(
        self,
        worker: Worker,
        asked: Sequence[Request],
        updates: Mapping[str, torch.Tensor] | None,
        weights: Mapping[str, float],
    ) -> bool:
        if not worker.agree(updates, weight=weights):
            self._begin_anew()
            return False
        reads = [name for request in asked for name in request.reads]
        if reads:
            worker.pull(reads)
        self._settle(worker, counted=True)
        return True

    def _asked(self) -> list[Request]:
        requests = [part.worker.open_request for part in self._parts]
        return [request for request in requests if request is not None]

    def _settle(self, worker: Worker, *, counted: bool) -> None:
        """The round is over: what was read is where it was asked for, and all may go on."""
        asked = self._asked()
        served, here = worker.served, worker.parameters
        with torch.no_grad():
            for name in (name for request in asked if request.lands for name in request.reads):
                here[name].copy_(served[name])
        self._is_published = all(request.updates for request in asked if request.act is Act.AGREE)
        for part in self._parts:
            if part.worker.open_request is not None:
                part.worker.settle(answer=counted)


class _Part:
    """The parameters of one pattern, their strategy, and the fiber that it runs on."""

    worker: PartWorker

    def __init__(self, pattern: str, strategy: ChosenStrategy, key: str) -> None:
        self.pattern = pattern
        self.strategy = strategy
        self.names: list[str] = []
        self.fiber = Fiber(pattern)
        self._key = key

    @property
    def at_once(self) -> Collection[str]:
        return self.strategy.applied_at_once(self.names)

    def join(self, worker: Worker, span: int) -> None:
        self.worker = PartWorker(
            worker,
            self.names,
            span=span,
            periods=1 if self.at_once else self.strategy.steps_per_round // span,
            stand=self.fiber.stand,
            key=self._key if self.strategy.wants_peers else None,
        )

    def begin(self, call: Callable[[Worker], None]) -> None:
        worker = self.worker
        self.fiber.begin(lambda: call(worker))

    @property
    def can_go_on(self) -> bool:
        return self.fiber.is_under_way and self.worker.open_request is None
