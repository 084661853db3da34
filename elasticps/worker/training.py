"""One worker's part in its job, as its optimizer and its data loader carry it out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from elasticps.api.chosen_strategy import ChosenStrategy
from elasticps.api.pipeline import Pipeline
from elasticps.api.strategy import ServedOptimizer
from elasticps.core.affinity import Span
from elasticps.core.blocks import Hyperparameters
from elasticps.core.commands import Turn
from elasticps.core.ranges import DataSpec, Range
from elasticps.errors import TrainingOver, UsageError
from elasticps.wire.control_messages import Finished, JobInfo, Prefer, Welcome
from elasticps.wire.messages import StateMeta
from elasticps.worker.agent import Agent
from elasticps.worker.backward_overlap import BackwardOverlap
from elasticps.worker.clipping import Clipping
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.device import Staged
from elasticps.worker.job_model import (
    JobModel,
    check_at_once,
    check_clipping,
    check_dtypes,
    check_frozen,
    check_overlap,
    check_staged,
    job_model,
    pipeline_of,
)
from elasticps.worker.lease import Samples
from elasticps.worker.membership import Membership
from elasticps.worker.optimizer import ElasticOptimizer
from elasticps.worker.own_state import OwnState
from elasticps.worker.pace import Pace
from elasticps.worker.parameters import BlockMemory, ParamGroup, memory_of
from elasticps.worker.progress_reports import ProgressReports
from elasticps.worker.served_model import ServedModel
from elasticps.worker.step_recorder import StepRecorder
from elasticps.worker.stepping import Stepping

log = logging.getLogger(__name__)


class WorkerRetired(SystemExit):
    """This worker is to exit quietly: it has left the job as it was asked to, or came too late.

    Raised by ``optimizer.step()``, and by ``run.optimizer()`` when the data are read and the main
    worker has ended.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason


class Training:
    """``begin`` makes this worker a member. ``weight``: the samples of its last batch.

    On the script's thread, but for what says otherwise.
    """

    def __init__(
        self, loop: DataLoop, agent: Agent, welcome: Welcome, log: Callable[..., None]
    ) -> None:
        self.weight = 1.0
        self.memory: Sequence[BlockMemory] = ()
        self.membership = Membership(loop, agent, welcome)
        self.reports = ProgressReports(loop, agent, self.membership)
        self.listeners: list[Callable[[], None]] = []
        self.reads_data = False
        self._loop = loop
        self._agent = agent
        self._welcome = welcome
        self._log = log
        self._recorder = StepRecorder(loop, agent)
        self._overlap: BackwardOverlap | None = None
        self.staged = Staged(())
        self._pace = Pace()
        self._own: OwnState | None = None
        self._frozen: Mapping[str, torch.Tensor] = {}
        self._served: Sequence[tuple[str, torch.Tensor, torch.dtype]] = ()
        self._left = False

    @property
    def job(self) -> JobInfo:
        """The job as the daemon told it last."""
        job = self._agent.job
        assert job is not None
        return job

    @property
    def is_begun(self) -> bool:
        return self.reports.member is not None

    @property
    def member(self) -> Stepping:
        if self.reports.member is None:
            raise _not_begun()
        return self.reports.member

    @property
    def turn(self) -> Turn:
        """This worker's part in the round to come."""
        turn = self.member.turn
        if turn is None:
            raise UsageError("this worker has left the job")
        return turn

    @property
    def round(self) -> int:
        """How many rounds the job has finished, as far as this worker has read."""
        return self.member.round

    @property
    def is_published(self) -> bool:
        """Have the shards all of the last round, as a checkpoint needs it?"""
        commit = self.membership.exchange.commit
        is_apart = commit is not None and commit.apart
        return self.member.is_published and not self.member.is_exchanging and not is_apart

    @property
    def steps(self) -> int:
        """How many steps this worker has taken itself."""
        return self.member.steps

    # -- becoming a member ----------------------------------------------------------------------

    def begin(
        self,
        model: torch.nn.Module | Pipeline,
        chosen: ServedOptimizer,
        groups: Sequence[ParamGroup] | None,
        clipping: Clipping,
        *,
        master_weights: bool,
        overlap_backward: bool,
        overlap_forward: bool,
    ) -> ElasticOptimizer:
        """``Run.optimizer``."""
        if self.membership.is_entered:
            raise UsageError("a run has one optimizer", hint="use groups= for several param groups")
        strategy = ChosenStrategy(self.job.strategy)
        for field, wanted in (
            ("overlap_backward", overlap_backward),
            ("overlap_forward", overlap_forward),
        ):
            if wanted:
                check_overlap(self.job, field)
        pipeline = pipeline_of(model, strategy)
        whole = model.layers if isinstance(model, Pipeline) else model
        made = job_model(
            whole,
            chosen,
            groups,
            strategy,
            self._welcome.block_bytes,
            master_weights=master_weights,
        )
        check_at_once(made.described, self.job)
        check_clipping(made, clipping.bound)
        staged = self.staged = Staged(made.tensors)
        check_staged(
            made,
            needed=staged.is_needed,
            is_cut=pipeline is not None,
            overlaps=overlap_backward or overlap_forward,
        )
        member = self._join(made, strategy, pipeline, clipping)
        self._recorder.model = whole
        self._frozen = made.frozen
        self._served = [(name, item, item.dtype) for name, item in made.trained.items()]
        self._own = OwnState(whole, made.trained, lambda: self.turn)
        self.membership.checkpoints.take_own = self._own.take
        if self.job.resume:
            self._own.resume(self.job, self.membership.exchange.begun)
        if self.job.checkpoint_dir:
            self._own.watch()
        staged.values_to_device()
        if pipeline is not None:
            pipeline.computed_by(self.forward_backward)
        self.reports.step_begins()
        local = made.local
        optimizer = ElasticOptimizer(
            self,
            local.param_groups,
            local.defaults,
            clipping,
            local=None if made.follows_script else local,
            served=made.served_as_chosen,
            staged=staged,
        )
        if overlap_forward or overlap_backward:
            member.share_no_memory("the optimizer overlaps exchange and computing")
        if overlap_forward:
            member.overlap_forward(whole)
        if overlap_backward:
            self._overlap = BackwardOverlap(
                member, member.parameters, optimizer.options_of_the_step, lambda: self.weight
            )
        return optimizer

    def _join(
        self,
        made: JobModel,
        strategy: ChosenStrategy,
        pipeline: Pipeline | None,
        clipping: Clipping,
    ) -> Stepping:
        self.memory = memory_of(made.described, self.staged.host)
        membership = self.membership
        try:
            membership.enter(self.job, made.described, self.memory, strategy, pipeline)
        except TrainingOver as over:
            log.warning("this worker leaves at once: %s", over)
            raise WorkerRetired(str(over)) from None
        member = self.reports.member = Stepping(
            self._loop,
            membership.exchange,
            strategy,
            ServedModel(made.described, self.staged.host),
            made.local,
            self.job,
            follows=made.follows,
            clipping=clipping,
            is_retiring=lambda: self._agent.retiring is not None,
            log=self._log,
            prefer=self._prefer,
            wait_for=self.reports.wait_for,
            peers=membership.peer_calls,
            pipeline=pipeline,
        )
        member.begin()
        return member

    def _prefer(self, blocks: tuple[Span, ...]) -> None:
        async def tell() -> None:
            self._agent.prefer(Prefer(blocks))

        self._loop.call(tell())

    # -- what the optimizer and the data loader do ----------------------------------------------

    def step(self, changed_options: Sequence[Hyperparameters]) -> None:
        """Carry out one step by the job's strategy."""
        member = self.member
        check_frozen(self._frozen)
        check_dtypes(self._served)
        if self._overlap is not None:
            self._overlap.check()
        if self.reads_data:
            member.tell_speed(self._pace.stepped(self.weight, self.reports.computing_s))
        self.staged.gradients_to_host()
        self._take_part(lambda: member.step(changed_options, self.weight))

    def forward_backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute a batch of the pipeline by the job's strategy."""
        member = self.member
        before = member.generation
        loss = member.forward_backward(inputs, targets)
        self._tell_listeners(before)
        return loss

    @property
    def data_policy(self) -> str:
        """What the job was submitted with."""
        return self.job.data_policy

    def register(self, spec: DataSpec, policy: str, ahead: int) -> str:
        """Say what is read; returns the data policy that rules."""
        self.member.arrive()
        self.member.register(spec, policy, ahead)
        self.staged.values_to_device()
        self.reports.step_begins()
        return policy or self.data_policy

    def begin_reading(self) -> None:
        """The first batch is about to be loaded."""
        if self._own is not None:
            self._own.begin_reading()

    def seed(self, seed: int) -> None:
        """``Run.seed``."""
        if self._own is None:
            raise _not_begun()
        self._own.seed_rounds(seed)

    @property
    def samples_ahead(self) -> list[Samples]:
        return self.member.samples_ahead

    def hold(self, parts: Sequence[Range]) -> None:
        self.member.hold(parts)

    def next_samples(self) -> Samples | None:
        """This worker's samples of the next step; None when all have been read."""
        member = self.member
        while (samples := member.next_samples()) is None:
            if self.turn.exhausted:
                member.end()
                self.staged.values_to_device()
                return None
            self._take_part(member.sit_out)
        return samples

    def fetch_states(self) -> Sequence[tuple[StateMeta, memoryview]]:
        self.member.arrive()
        return self._loop.call(self.membership.exchange.states())

    def fetch_options(self) -> Sequence[Hyperparameters]:
        return self.member.of_the_script(self._loop.call(self.membership.exchange.options()))

    def give_states(self, states: Sequence[tuple[StateMeta, memoryview]]) -> None:
        self.member.arrive()
        self.member.initialize(states)

    def read_values(self) -> None:
        self.member.arrive()
        self.member.read_values()
        self.staged.values_to_device()

    def arrive(self) -> None:
        self.member.arrive()

    def _take_part(self, act: Callable[[], None]) -> None:
        """Do what may end a round, and what follows from that."""
        member = self.member
        if self._agent.retiring is not None:
            self.membership.checkpoints.finish()
        before, round_ = member.generation, member.round
        self.reports.exchange_begins()
        member.arrive()
        began_ns = self._agent.spans.begin()
        act()
        self.staged.values_to_device()
        self._agent.spans.end("optimizer.step", began_ns, round_=member.round)
        if self._recorder.is_asked:
            self._recorder.stepped(member.round)
        if member.round != round_:
            self._keep_checkpoints()
        self.reports.step_ends()
        if member.turn is None:
            member.arrive()
            self._left = True
            raise WorkerRetired(self._agent.retiring or "asked to leave")
        if member.round != round_ and self._own is not None:
            self._own.end_round()
        self._tell_listeners(before)

    def _tell_listeners(self, before: int) -> None:
        if before != self.member.generation:
            self.member.arrive()
            for listener in self.listeners:
                listener()

    def _keep_checkpoints(self) -> None:
        exchange, job = self.membership.exchange, self.job
        checkpoints = self.membership.checkpoints
        if checkpoints.due(job, exchange, published=self.is_published):
            checkpoints.make(job, exchange, self._loop, self.reports.tell)
            self.reports.hurry()

    # -- the end --------------------------------------------------------------------------------

    def close(self, *, failed: bool) -> None:
        """Leave the job in order, or, when it has ``failed``, only let go of it."""
        try:
            if self.is_begun and not failed:
                failed = True
                self.member.arrive()
                self.member.end()
                self.membership.checkpoints.finish()
                failed = False
                self._recorder.close()
        finally:
            try:
                self._loop.call(self._depart(failed=failed))
            finally:
                self.membership.close()

    async def _depart(self, *, failed: bool) -> None:
        """Tell the daemon how it ended, then close. A failed worker only closes: it is evicted."""
        try:
            if not failed:
                await self.reports.tell()
                verdict = await self.membership.farewell()
                self._agent.finished(Finished(self._left, verdict))
        finally:
            await self.membership.aclose()
            await self._agent.aclose()


def _not_begun() -> UsageError:
    return UsageError("call run.optimizer(...) first: it makes this worker a member")
