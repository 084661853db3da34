"""A member of a job as its strategy sees it: what it reads, and what it may do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from elasticps.api.pipeline import Pipeline
from elasticps.api.strategy import Pending, Strategy
from elasticps.core.affinity import Span
from elasticps.core.commands import Turn
from elasticps.core.consistency import Consistency
from elasticps.errors import JobFailed, UsageError
from elasticps.wire.control_messages import JobInfo
from elasticps.worker.clipping import Clipping
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.exchange import Exchange
from elasticps.worker.forward_overlap import Arrivals
from elasticps.worker.lease import Lease
from elasticps.worker.peer_calls import PeerCalls
from elasticps.worker.served_model import ServedModel

PATIENCE_S = 1.0
"""How long the ledger may take to hear of a death, before a round begins anew with all members."""

if TYPE_CHECKING:
    from elasticps.api.strategy import Tensors, Weight


class Member:
    """One worker's membership on the script's thread: an ``api.strategy.Worker``.

    ``follows``: for each param group of the servers the one of the script whose options, and so
    whose schedules, are its own; None where the servers run another optimizer.
    ``turn`` is this worker's part in the round to come, None once it has left. ``clipping`` is done
    where the whole of a step's gradient is: by the shards, or here.
    """

    def __init__(
        self,
        loop: DataLoop,
        exchange: Exchange,
        strategy: Strategy,
        model: ServedModel,
        local_optimizer: torch.optim.Optimizer,
        job: JobInfo,
        *,
        follows: Sequence[int | None],
        clipping: Clipping,
        is_retiring: Callable[[], bool],
        log: Callable[..., None],
        prefer: Callable[[tuple[Span, ...]], None],
        wait_for: Callable[[str], None],
        peers: PeerCalls | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.turn = exchange.turn
        self.round = 0
        self.steps = 0
        self.weight = 0.0
        self.local_optimizer = local_optimizer
        self._loop = loop
        self._exchange = exchange
        self._strategy = strategy
        self._follows = follows
        self._leaving = False
        self._model = model
        self._job = job
        self._is_retiring = is_retiring
        self._log = log
        self._prefer = prefer
        self._wait_for = wait_for
        self._preferred: tuple[Span, ...] = ()
        self._peers = peers
        self._pipeline = pipeline
        self._lease = Lease(strategy.steps_per_round)
        self._last_turn: Turn | None = None
        self._ticket: _Ticket | None = None
        self._ended = False
        self._began_early = False
        self.arrivals: Arrivals | None = None
        self._clipping = clipping
        self._is_in_rounds = job.consistency is Consistency.SYNC
        if None in follows:
            local_optimizer.register_step_pre_hook(lambda *_: self._clip())
        elif self._is_in_rounds:
            exchange.clipping = clipping

    # -- what a strategy reads ------------------------------------------------------------------

    @property
    def parameters(self) -> Tensors:
        return self._model.parameters

    @property
    def served(self) -> Tensors:
        if not self._model.is_kept:
            self._model.install(self._model.fresh(self.parameters))
            if self.steps:
                self.pull()
            else:
                self._model.refresh()
        return self._model.served

    @property
    def rank(self) -> int:
        return self._known_turn.rank

    @property
    def world(self) -> int:
        return self._known_turn.world

    @property
    def pushers(self) -> int:
        return self._known_turn.pushers

    @property
    def generation(self) -> int:
        return self._known_turn.generation

    @property
    def steps_left(self) -> int:
        return self._lease.steps_left

    @property
    def ends_data(self) -> bool:
        return self._known_turn.last

    @property
    def leaving(self) -> bool:
        """As of the beginning of the step: all that happens in it comes to the same answer."""
        return self._leaving

    @property
    def peers(self) -> PeerCalls:
        if self._peers is None:
            raise UsageError("this strategy does not say uses_peers", field="uses_peers")
        return self._peers

    @property
    def pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise UsageError(
                "the model is not given as layers",
                field="strategy",
                hint="run.optimizer(run.pipeline(layers, loss_fn), ...)",
            )
        return self._pipeline

    @property
    def consistency(self) -> str:
        return self._job.consistency.value

    @property
    def backup_workers(self) -> int:
        return self._job.backup_workers

    @property
    def codec(self) -> str:
        return self._job.codec

    @property
    def is_published(self) -> bool:
        """Have the shards all that counts of the last round, as far as the strategy knows?"""
        return self._strategy.is_published

    @property
    def is_exchanging(self) -> bool:
        """Is a round under way in the background?"""
        return self._ticket is not None

    # -- what a strategy does -------------------------------------------------------------------

    def exchange(self, updates: Tensors | None = None, *, weight: Weight = None) -> bool:
        self._begin_round(updates, weight)
        if self.arrivals is None or self._model.is_kept:
            counted = self._loop.call(self._exchange.round())
            self._model.refresh()
        else:
            counted = self._loop.call(self._exchange.whole_round())
            self.arrivals.expect()
        self._settle(counted=counted)
        return counted

    def start_exchange(
        self,
        updates: Tensors,
        *,
        weight: Weight = None,
        pull: Collection[str] | None = None,
    ) -> Pending:
        names = tuple(updates) if pull is None else tuple(pull)
        fresh = self._model.fresh(names)
        into = self._model.by_index(fresh)
        if names and not self._model.is_kept:
            raise UsageError("ask for served in begin(): the reading is to be kept", field="pull")
        self._begin_round(updates, weight)
        work = self._loop.start(self._exchange.round(into))

        def take_in(*, counted: bool) -> None:
            self._ticket = None
            self._model.install(fresh)
            self._settle(counted=counted)

        self._ticket = _Ticket(lambda: self._loop.result_of(work), work.done, take_in)
        return self._ticket

    def push(self, updates: Tensors | None = None) -> None:
        self._be_alone()
        self._be_in_rounds()
        at_once = self._model.at_once
        if updates is None:
            grads = {name: self.parameters[name].grad for name in at_once}
            updates = {name: item for name, item in grads.items() if item is not None}
        for name in updates.keys() - at_once:
            raise UsageError(
                f"{name} is pushed in rounds alone: its strategy does not say applied_at_once",
                field="updates",
            )
        self._loop.call(self._exchange.push_at_once(self._model.by_index(updates)))

    def pull(self, names: Collection[str] | None = None) -> None:
        self._be_alone()
        served = self.served
        wanted = served if names is None else {name: served[name] for name in names}
        self._loop.call(self._exchange.read(self._model.by_index(wanted)))

    def refresh(self, names: Collection[str]) -> None:
        self._be_alone()
        wanted = {name: self.parameters[name] for name in names}
        self._loop.call(self._exchange.read(self._model.by_index(wanted)))

    def agree(self, updates: Tensors | None = None, *, weight: Weight = None) -> bool:
        self._be_in_rounds()
        samples = self.weight
        self._begin_round(updates, weight)
        whole = self._loop.call(self._exchange.agree(pushes=updates is not None))
        if whole:
            self._settle(counted=True)
        else:
            self.weight = samples
            self._adopt_turn()
        return whole

    def regroup(self) -> None:
        self._be_in_rounds()
        self._be_alone()
        self._loop.call(self._exchange.regroup(PATIENCE_S))
        self._adopt_turn()

    def await_joiner(self, why: str) -> None:
        self._be_in_rounds()
        self._be_alone()
        self._wait_for(why)
        self._loop.call(self._exchange.await_joiner())
        self._wait_for("")
        self._adopt_turn()

    def log(self, **numbers: float) -> None:
        self._log(**numbers)

    def prefer_here(self, names: Collection[str]) -> None:
        blocks = self._exchange.spans_of(self._model.numbered(dict.fromkeys(names, 1.0)))
        if blocks != self._preferred:
            self._preferred = blocks
            self._prefer(blocks)

    def await_change(self) -> None:
        self._be_alone()
        self._be_in_rounds()
        self._loop.call(self._exchange.await_change())
        self._adopt_turn()

    def _be_in_rounds(self) -> None:
        if not self._is_in_rounds:
            raise UsageError("only synchronous rounds have a set of workers", field="consistency")

    def abstain(self, pull: Collection[str] | None = None) -> None:
        names = self.parameters if pull is None else pull
        here = {name: self.parameters[name].detach() for name in names}
        self._exchange.leaving = self.leaving
        self._loop.call(self._exchange.abstain(self._model.by_index(here)))
        self._model.refresh(here)
        self._settle(counted=True)

    def _begin_round(self, updates: Tensors | None, weight: Weight) -> None:
        """Number the pushes of a round, and say what of the samples is not read yet."""
        self._be_alone()
        if self.turn is None:
            raise JobFailed("this worker has left the job")
        if updates and self._job.consistency is Consistency.SYNC:
            for name in self._model.at_once.intersection(updates):
                raise UsageError(f"{name} is in no round: push it", field="updates")
        exchange = self._exchange
        exchange.keeps = self._lease.hand_in()
        exchange.leaving = self.leaving
        began_early, self._began_early = self._began_early, False
        if began_early:
            self.weight = 0.0
            return
        exchange.weight = weight if isinstance(weight, float | int) else self.weight or 1.0
        exchange.weights = self._model.numbered(weight) if isinstance(weight, Mapping) else {}
        exchange.begin(None if updates is None else self._model.by_index(updates))
        self.weight = 0.0

    def _be_alone(self) -> None:
        if self._ticket is not None:
            raise UsageError("a round is under way: wait for its ticket first", field="strategy")

    def _settle(self, *, counted: bool) -> None:
        """A round is over: this worker's next turn is known, and its samples."""
        if not counted:  # what was lent is lent again, read or not
            self._lease.clear()
        self._adopt_turn()
        if self.turn is not None:
            self._lease.add(self.turn)
            if self._peers is not None:
                self._peers.begin_round()

    def _clip(self) -> None:
        self._clipping.clip(self.parameters.values())

    def _adopt_turn(self) -> None:
        exchange = self._exchange
        self.turn = exchange.turn
        self._last_turn = self.turn or self._last_turn
        self.round = exchange.commit.round if exchange.commit else self.round

    @property
    def _known_turn(self) -> Turn:
        assert self._last_turn is not None
        return self._last_turn


class _Ticket:
    """A round in the background; what it brought is taken in by the script's own thread."""

    def __init__(
        self, result: Callable[[], bool], is_done: Callable[[], bool], take_in: Callable[..., None]
    ) -> None:
        self._result = result
        self._is_done = is_done
        self._take_in = take_in
        self._is_taken_in = False

    @property
    def done(self) -> bool:
        return self._is_done()

    def wait(self) -> bool:
        counted = self._result()
        if not self._is_taken_in:
            self._is_taken_in = True
            self._take_in(counted=counted)
        return counted
