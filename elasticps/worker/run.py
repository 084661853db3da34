"""The public face of a worker: ``join()`` and the ``Run`` that it gives to a script."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import torch

from elasticps.api.chosen_strategy import ChosenStrategy
from elasticps.api.pipeline import Loss, Pipeline
from elasticps.api.strategy import ServedOptimizer
from elasticps.core.affinity import Span
from elasticps.core.blocks import Hyperparameters
from elasticps.core.commands import Turn
from elasticps.core.ids import Round
from elasticps.core.ranges import DataSpec, Range
from elasticps.errors import TrainingOver, UsageError
from elasticps.wire.address import Address
from elasticps.wire.messages import Finished, JobInfo, Prefer, Progress, StateMeta, Welcome
from elasticps.wire.spans import Spans
from elasticps.wire.transports import TRANSPORTS_VARIABLE, allowed_transports
from elasticps.worker.agent import Agent
from elasticps.worker.backward_overlap import BackwardOverlap
from elasticps.worker.clipping import Clipping
from elasticps.worker.data import Dataset, ElasticData, Stream, elastic_data
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.device import Staged
from elasticps.worker.job_model import (
    check_at_once,
    check_clipping,
    check_overlap,
    check_staged,
    job_model,
    pipeline_of,
)
from elasticps.worker.lease import Samples
from elasticps.worker.loading import LoaderOptions
from elasticps.worker.membership import Membership
from elasticps.worker.metrics_file import METRICS_VARIABLE, MetricsFile
from elasticps.worker.optimizer import ElasticOptimizer
from elasticps.worker.pace import Pace
from elasticps.worker.parameters import BlockMemory, ParamGroup, memory_of
from elasticps.worker.reduction import Metric, Op, reduced
from elasticps.worker.served_model import ServedModel
from elasticps.worker.step_recorder import StepRecorder
from elasticps.worker.stepping import Stepping

log = logging.getLogger(__name__)

AGENT_VARIABLE = "ELASTICPS_AGENT"
WORKER_VARIABLE = "ELASTICPS_WORKER"
PROGRESS_PERIOD_S = 0.2


class WorkerRetired(SystemExit):
    """This worker is to exit quietly: it has left the job as it was asked to, or came too late.

    Raised by ``optimizer.step()``, and by ``run.optimizer()`` when the data are read and the main
    worker has ended.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason


class Run:
    """One worker's membership of a job. Made by ``join``; a context manager."""

    def __init__(
        self, loop: DataLoop, agent: Agent, welcome: Welcome, kept: MetricsFile | None = None
    ) -> None:
        self.weight = 1.0
        self.memory: Sequence[BlockMemory] = ()
        self._loop = loop
        self._agent = agent
        self._welcome = welcome
        self._membership = Membership(loop, agent, welcome)
        self._recorder = StepRecorder(loop, agent)
        self._overlap: BackwardOverlap | None = None
        self._stepping: Stepping | None = None
        self._staged = Staged(())
        self._data: ElasticData | None = None
        self._listeners: list[Callable[[], None]] = []
        self._metrics: dict[str, float] = {}
        self._kept = kept
        self._told_at = 0.0
        self._waits_for = ""
        self._stepped_at = time.monotonic()
        self._step_s = self._compute_s = 0.0
        self._pace = Pace()
        self._left = False
        self._closed = False

    # -- what a script reads --------------------------------------------------------------------

    @property
    def node(self) -> str:
        """The node that this worker runs on."""
        return self._welcome.node

    @property
    def turn(self) -> Turn:
        """This worker's part in the round to come."""
        turn = self._member.turn
        if turn is None:
            raise UsageError("this worker has left the job")
        return turn

    @property
    def round(self) -> int:
        """How many rounds the job has finished, as far as this worker has read."""
        return self._member.round

    @property
    def steps(self) -> int:
        """How many steps this worker has taken itself."""
        return self._member.steps

    @property
    def rank(self) -> int:
        """This worker's place among the present workers; it may change when they do."""
        return self.turn.rank

    @property
    def world(self) -> int:
        """How many workers the round to come has."""
        return self.turn.world

    @property
    def is_main(self) -> bool:
        """True in exactly one worker: the one to evaluate and to print."""
        return self.rank == 0

    @property
    def _member(self) -> Stepping:
        if self._stepping is None:
            raise UsageError("call run.optimizer(...) first: it makes this worker a member")
        return self._stepping

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes sent to and received from shard servers so far, by transport, before encryption."""
        return self._membership.traffic

    # -- what a script does ---------------------------------------------------------------------

    def pipeline(self, layers: torch.nn.Sequential, loss_fn: Loss, *, seed: int = 0) -> Pipeline:
        """``layers`` and their loss, for ``run.optimizer``: what a strategy may cut into stages.

        Built under ``torch.device("meta")``, ``layers`` are never whole in any worker that the
        strategy gives a stage; ``seed`` draws their initial values. ``loss_fn`` is a mean over the
        samples. Raises UsageError naming what cannot be cut.
        """
        return Pipeline(layers, loss_fn, seed=seed)

    def optimizer(
        self,
        model: torch.nn.Module | Pipeline,
        name: str,
        *,
        groups: Sequence[ParamGroup] | None = None,
        clip_grad_norm: float | None = None,
        master_weights: bool = True,
        overlap_backward: bool = False,
        overlap_forward: bool = False,
        **options: Any,
    ) -> ElasticOptimizer:
        """Hand ``model``'s parameters to the job and get the optimizer that trains them.

        ``name`` is an optimizer plugin; ``options`` are its class's arguments; ``groups`` are
        torch param groups where one set of options is not enough. ``clip_grad_norm`` is the largest
        norm that the gradient of a step may have, over all parameters and workers. Of parameters in
        bfloat16 or float16 the servers keep float32 copies, step on those and send them back
        rounded; ``master_weights=False`` has them step in the parameter's own dtype.
        The job's first worker gives the initial values, every other worker's parameters are
        overwritten by the job's. ``overlap_backward``: gradients leave while backward computes the
        others; it must be the only one of its step, and leave them as they are to be.
        ``overlap_forward``: ``step`` may return before the new values are there; what takes a
        parameter out of its module waits for it, what the script took out before does not
        (docs/overlap.md says more of both).

        Raises UsageError for a model or option that cannot be served, PluginError for the plugin.
        """
        if self._membership.is_entered:
            raise UsageError("a run has one optimizer", hint="use groups= for several param groups")
        clipping = Clipping(clip_grad_norm)
        strategy = ChosenStrategy(self._job.strategy)
        for field, wanted in (
            ("overlap_backward", overlap_backward),
            ("overlap_forward", overlap_forward),
        ):
            if wanted:
                check_overlap(self._job, field)
        chosen = ServedOptimizer(name=name, options=options)
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
        check_at_once(made.described, self._job)
        check_clipping(made, clipping.bound)
        staged = self._staged = Staged(made.tensors)
        check_staged(
            made,
            needed=staged.is_needed,
            is_cut=pipeline is not None,
            overlaps=overlap_backward or overlap_forward,
        )
        self.memory = memory_of(made.described, staged.host)
        membership = self._membership
        try:
            membership.enter(self._job, made.described, self.memory, strategy, pipeline)
        except TrainingOver as over:
            log.warning("this worker leaves at once: %s", over)
            raise WorkerRetired(str(over)) from None
        member = self._stepping = Stepping(
            self._loop,
            membership.exchange,
            strategy,
            ServedModel(made.described, staged.host),
            made.local,
            self._job,
            follows=made.follows,
            clipping=clipping,
            is_retiring=lambda: self._agent.retiring is not None,
            log=self.log,
            prefer=self._prefer,
            wait_for=self._wait_for,
            peers=membership.peer_calls,
            pipeline=pipeline,
        )
        member.begin()
        self._recorder.model = whole
        staged.values_to_device()
        if pipeline is not None:
            pipeline.computed_by(self.forward_backward)
        self._stepped_at = time.monotonic()
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

    def data(
        self,
        dataset: Dataset | Stream,
        *,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        shuffle: bool | None = None,
        chunk: int = 1,
        length: int | None = None,
        policy: str = "",
        local: Iterable[int] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        **loader: Unpack[LoaderOptions],
    ) -> ElasticData:
        """This worker's share of ``dataset`` as batches, which a torch DataLoader loads.

        ``batch_size`` is the global batch: workers share it whatever their number, so that a
        learning rate tuned once stays right. One pass over the result is ``epochs`` passes over the
        data; a worker that joins later continues where the job is. The order of a pass is
        ``elasticps.sample_order(len(dataset), seed, epoch, chunk=chunk)``, or with
        ``shuffle=False`` the data set's own. An iterable data set is read in its own order, the
        first ``length`` items of it a pass.

        ``policy``: how workers share the samples, where the job was submitted without a
        ``--data-policy``; ``local``: the indices of samples on this node, for policies that ask.
        ``loader``: num_workers and what else the DataLoader takes. Raises UsageError naming the
        field.
        """
        if self._data is not None:
            raise UsageError("a run has one data loader", field="run.data")
        self._data = elastic_data(
            self,
            dataset,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            shuffle=shuffle,
            chunk=chunk,
            length=length,
            policy=policy,
            local=local,
            collate=collate,
            options=loader,
        )
        return self._data

    def log(self, **metrics: float | torch.Tensor) -> None:
        """Numbers to show in ``elasticps status`` and on the dashboard.

        A tensor of one element is read. Of all workers the main one's are kept, where the
        environment says ``ELASTICPS_METRICS_DIR``: as JSON lines, and for TensorBoard.
        """
        numbers = {key: _number(key, item) for key, item in metrics.items()}
        self._metrics.update(numbers)
        if self._kept is not None and self._stepping is not None and self.is_main:
            self._kept.write(self.round, numbers)

    def reduce(self, metric: Metric, op: Op = "mean", *, weight: float | None = None) -> Metric:
        """``metric`` over all workers that call this between the same two rounds.

        A number or a tensor of at most 1,024. The mean is weighted by ``weight``, by default the
        samples of this worker's last batch: exact, whatever each was lent. All workers are to call
        it, as often; who goes on to the next step, leaves or dies instead is not waited for.

        Raises UsageError naming the field, and in the consistencies that have no rounds.
        """
        if op == "mean" and weight is None:
            weight = self.weight
        return reduced(metric, op, 0.0 if weight is None else weight, self._member.reduce)

    def on_membership_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the set of workers changes, between two rounds."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Leave the job: what the with-block does at its end. Idempotent."""
        self._close(failed=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # sys.exit() and sys.exit(0), as WorkerRetired is one, end a worker in order.
        ended = isinstance(error, SystemExit) and error.code in (0, None)
        failed = error is not None and not ended
        self._close(failed=failed)

    # -- what the optimizer and the data loader do ----------------------------------------------

    def step(self, changed_options: Sequence[Hyperparameters]) -> None:
        """Carry out one step by the job's strategy."""
        member = self._member
        if self._overlap is not None:
            self._overlap.check()
        if self._data is not None:
            seconds = time.monotonic() - self._stepped_at
            member.tell_speed(self._pace.stepped(self.weight, seconds))
        self._staged.gradients_to_host()
        self._take_part(lambda: member.step(changed_options, self.weight))

    def forward_backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute a batch of the pipeline by the job's strategy."""
        member = self._member
        before = member.generation
        loss = member.forward_backward(inputs, targets)
        self._tell_listeners(before)
        return loss

    @property
    def data_policy(self) -> str:
        """What the job was submitted with."""
        return self._job.data_policy

    def register(self, spec: DataSpec, policy: str, ahead: int) -> str:
        """Say what is read; returns the data policy that rules."""
        self._member.arrive()
        self._member.register(spec, policy, ahead)
        self._staged.values_to_device()
        self._stepped_at = time.monotonic()
        return policy or self.data_policy

    @property
    def samples_ahead(self) -> list[Samples]:
        return self._member.samples_ahead

    def hold(self, parts: Sequence[Range]) -> None:
        self._member.hold(parts)

    def next_samples(self) -> Samples | None:
        """This worker's samples of the next step; None when all have been read."""
        member = self._member
        while (samples := member.next_samples()) is None:
            if self.turn.exhausted:
                member.end()
                self._staged.values_to_device()
                return None
            self._take_part(member.sit_out)
        return samples

    def fetch_states(self) -> Sequence[tuple[StateMeta, memoryview]]:
        self._member.arrive()
        return self._loop.call(self._membership.exchange.states())

    def fetch_options(self) -> Sequence[Hyperparameters]:
        return self._member.of_the_script(self._loop.call(self._membership.exchange.options()))

    def give_states(self, states: Sequence[tuple[StateMeta, memoryview]]) -> None:
        self._member.arrive()
        self._member.initialize(states)

    def read_values(self) -> None:
        self._member.arrive()
        self._member.read_values()
        self._staged.values_to_device()

    def arrive(self) -> None:
        self._member.arrive()

    def _take_part(self, act: Callable[[], None]) -> None:
        """Do what may end a round, and what follows from that."""
        member = self._member
        if self._agent.retiring is not None:
            self._membership.checkpoints.finish()
        before, round_ = member.generation, member.round
        self._compute_s = time.monotonic() - self._stepped_at
        member.arrive()
        began_ns = self._agent.spans.begin()
        act()
        self._staged.values_to_device()
        self._agent.spans.end("optimizer.step", began_ns, round_=member.round)
        if self._recorder.is_asked:
            self._recorder.stepped(member.round)
        if member.round != round_:
            self._keep_checkpoints(member)
        self._tell_progress()
        if member.turn is None:
            member.arrive()
            self._left = True
            raise WorkerRetired(self._agent.retiring or "asked to leave")
        self._tell_listeners(before)

    def _tell_listeners(self, before: int) -> None:
        if before != self._member.generation:
            self._member.arrive()
            for listener in self._listeners:
                listener()

    def _keep_checkpoints(self, member: Stepping) -> None:
        exchange, job = self._membership.exchange, self._job
        checkpoints = self._membership.checkpoints
        is_whole = member.is_published and not member.is_exchanging
        if is_whole and checkpoints.due(job, exchange):
            checkpoints.make(job, exchange, self._loop, self._progress)
            self._told_at = 0.0

    def _tell_progress(self) -> None:
        now = time.monotonic()
        self._step_s, self._stepped_at = now - self._stepped_at, now
        if now - self._told_at >= PROGRESS_PERIOD_S:
            self._told_at = now
            self._loop.call(self._progress())

    def _prefer(self, blocks: tuple[Span, ...]) -> None:
        async def tell() -> None:
            self._agent.prefer(Prefer(blocks))

        self._loop.call(tell())

    def _wait_for(self, why: str) -> None:
        self._waits_for = why
        self._loop.call(self._progress())

    async def _progress(self) -> None:
        member = self._stepping
        if member is not None and member.turn is not None and member.round:
            turn, round_ = member.turn, Round(member.round)
            encoder, checkpoints = self._membership.exchange.encoder, self._membership.checkpoints
            self._agent.progress(
                Progress(
                    round=round_,
                    generation=turn.generation,
                    rank=turn.rank,
                    world=turn.world,
                    metrics={**self._metrics},
                    step_s=self._step_s,
                    compute_s=self._compute_s,
                    pushed_bytes=encoder.pushed_bytes,
                    gradient_bytes=encoder.gradient_bytes,
                    checkpoint=checkpoints.report,
                    checkpoint_attempts=checkpoints.attempts,
                    waits_for=self._waits_for,
                    transport=self._membership.exchange.transport,
                )
            )

    @property
    def _job(self) -> JobInfo:
        """The job as the daemon told it last."""
        job = self._agent.job
        assert job is not None
        return job

    def _close(self, *, failed: bool) -> None:
        if self._closed:
            return
        self._closed = True
        if self._data is not None:
            self._data.close()
        if self._kept is not None:
            self._kept.close()
        try:
            if self._stepping is not None and not failed:
                failed = True
                self._stepping.arrive()
                self._stepping.end()
                self._membership.checkpoints.finish()
                failed = False
                self._recorder.close()
        finally:
            try:
                self._loop.call(self._depart(failed=failed))
            finally:
                self._membership.close()
                self._loop.close()

    async def _depart(self, *, failed: bool) -> None:
        """Tell the daemon how it ended, then close. A failed worker only closes: it is evicted."""
        try:
            if not failed:
                await self._progress()
                verdict = await self._membership.farewell()
                self._agent.finished(Finished(self._left, verdict))
        finally:
            await self._membership.aclose()
            await self._agent.aclose()


def _number(key: str, item: float | torch.Tensor) -> float:
    try:
        return float(item.detach()) if isinstance(item, torch.Tensor) else float(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"metric {key}: {error}", field=key, limit="one number") from error


TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def forget_torchrun() -> None:
    """Take out of the environment what frameworks make process groups from.

    The job is the group: a second one, of the workers of a moment, would wait for the dead.
    """
    for name in TORCHRUN:
        os.environ.pop(name, None)


def join(environment: Mapping[str, str] | None = None) -> Run:
    """Join the job that this process was started for.

    ``elasticps run`` and the cluster's daemons set what is needed in the environment;
    ELASTICPS_TRANSPORTS=tcp there leaves out what is faster on one machine. RANK, WORLD_SIZE and
    the like, which they set too, are taken out of it: see ``run.rank``. Raises UsageError when
    this process was not started by one of them, PeerUnavailable when the daemon does not answer.
    """
    variables = os.environ if environment is None else environment
    address, uid = variables.get(AGENT_VARIABLE), variables.get(WORKER_VARIABLE)
    if not address or not uid:
        raise UsageError(
            "this process was not started by elasticps",
            field=AGENT_VARIABLE,
            hint="start the script with: elasticps run SCRIPT",
        )
    if environment is None:
        forget_torchrun()
    place = Address.parse(address)
    transports = allowed_transports(variables.get(TRANSPORTS_VARIABLE, ""))
    spans = Spans()
    loop, agent = DataLoop(spans), Agent(spans, transports)

    async def enter() -> Welcome:
        welcome = await agent.connect(place, uid)
        await agent.until(lambda: agent.job, None)
        return welcome

    try:
        welcome = loop.call(enter())
    except BaseException:
        loop.call(agent.aclose())
        loop.close()
        raise
    kept = variables.get(METRICS_VARIABLE)
    job = agent.job
    assert job is not None
    return Run(loop, agent, welcome, MetricsFile(Path(kept) / job.name) if kept else None)
