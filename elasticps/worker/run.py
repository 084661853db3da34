"""The public face of a worker: the ``Run`` that ``join()`` gives to a script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import torch

from elasticps.api.pipeline import Loss, Pipeline
from elasticps.api.strategy import ServedOptimizer
from elasticps.core.commands import Turn
from elasticps.errors import UsageError
from elasticps.wire.control_messages import JobInfo, Welcome
from elasticps.worker.agent import Agent
from elasticps.worker.clipping import Clipping
from elasticps.worker.data import Dataset, ElasticData, Stream, elastic_data
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.loading import LoaderOptions
from elasticps.worker.membership import Membership
from elasticps.worker.metrics_file import MetricsFile
from elasticps.worker.optimizer import ElasticOptimizer
from elasticps.worker.parameters import ParamGroup
from elasticps.worker.reduction import Metric, Op, reduced
from elasticps.worker.stepping import Stepping
from elasticps.worker.training import Training
from elasticps.worker.whole_state import WholeState


class Run:
    """One worker's membership of a job. Made by ``join``; a context manager."""

    def __init__(
        self, loop: DataLoop, agent: Agent, welcome: Welcome, kept: MetricsFile | None = None
    ) -> None:
        self._loop = loop
        self._agent = agent
        self._welcome = welcome
        self._training = Training(loop, agent, welcome, self.log)
        self._data: ElasticData | None = None
        self._state: WholeState | None = None
        self._kept = kept
        self._closed = False

    # -- what a script reads --------------------------------------------------------------------

    @property
    def node(self) -> str:
        """The node that this worker runs on."""
        return self._welcome.node

    @property
    def turn(self) -> Turn:
        """This worker's part in the round to come."""
        return self._training.turn

    @property
    def round(self) -> int:
        """How many rounds the job has finished, as far as this worker has read."""
        return self._training.round

    @property
    def steps(self) -> int:
        """How many steps this worker has taken itself."""
        return self._training.steps

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
        """True in exactly one worker: the one to evaluate and to print.

        When it ends in order, with all data read, no other takes its place.
        """
        return self.turn.is_main

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes sent to and received from shard servers so far, by transport, before encryption."""
        return self._membership.traffic

    @property
    def _member(self) -> Stepping:
        return self._training.member

    @property
    def _membership(self) -> Membership:
        return self._training.membership

    @property
    def _job(self) -> JobInfo:
        return self._training.job

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
        optimizer = self._training.begin(
            model,
            ServedOptimizer(name=name, options=options),
            groups,
            Clipping(clip_grad_norm),
            master_weights=master_weights,
            overlap_backward=overlap_backward,
            overlap_forward=overlap_forward,
        )
        whole = model.layers if isinstance(model, Pipeline) else model
        self._state = WholeState(self._training, whole, optimizer, self._training.staged)
        return optimizer

    def data(
        self,
        dataset: Dataset | Stream,
        *,
        batch_size: int,
        accumulate: int = 1,
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
        learning rate tuned once stays right. ``accumulate``: how many of them one
        ``optimizer.step()`` is for. One pass over the result is ``epochs`` passes over the data; a
        worker that joins later continues where the job is. The order of a pass is
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
            self._training,
            dataset,
            batch_size=batch_size,
            accumulate=accumulate,
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
        self._training.reads_data = True
        return self._data

    def log(self, **metrics: float | torch.Tensor) -> None:
        """Numbers to show in ``elasticps status`` and on the dashboard.

        A tensor of one element is read. Of all workers the main one's are kept, where the
        environment says ``ELASTICPS_METRICS_DIR``: as JSON lines, and for TensorBoard.
        """
        numbers = {key: _number(key, item) for key, item in metrics.items()}
        self._training.reports.metrics.update(numbers)
        if self._kept is not None and self._training.is_begun and self.is_main:
            self._kept.write(self.round, numbers)

    def reduce(self, metric: Metric, op: Op = "mean", *, weight: float | None = None) -> Metric:
        """``metric`` over all workers that call this between the same two rounds.

        A number or a tensor of at most 1,024. The mean is weighted by ``weight``, by default the
        samples of this worker's last batch: exact, whatever each was lent. All workers are to call
        it, as often; who goes on to the next step, leaves or dies instead is not waited for.

        Raises UsageError naming the field, and in the consistencies that have no rounds.
        """
        if op == "mean" and weight is None:
            weight = self._training.weight
        return reduced(metric, op, 0.0 if weight is None else weight, self._member.reduce)

    def seed(self, seed: int) -> None:
        """Seed torch, Python's ``random`` and NumPy anew for each round, from (seed, rank, round).

        So a resumed job draws, in every worker, what it would have drawn, and a job with another
        number of workers draws other numbers in each. Called behind ``optimizer``, once what all
        workers must have alike is drawn: from now on each has its own. Without it a resumed job's
        main worker goes on from its states in the checkpoint, and others are seeded once.
        """
        self._training.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """``{"model": ..., "optimizer": ..., "round": ...}`` as plain torch, for ``torch.save``.

        ``model`` and ``optimizer`` are what ``state_dict`` of a model and an optimizer in one
        process has, and load there. Parameters, and the optimizer's state, are the shards' after
        the last round, all of the same in sync consistency; buffers and frozen parameters are this
        worker's, as is the optimizer's state where the strategy has workers step by themselves.
        Any worker may call it; others need not.

        Raises UsageError while the strategy keeps the last round from the shards, BlockUnavailable
        when the job has gone on without this worker.
        """
        return self._whole_state.take()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin with what ``state_dict`` gave, in every worker, before its first step.

        ``optimizer`` may be left out of it. A job that has finished a round, which this worker has
        joined late or resumed, keeps its parameters and state.

        Raises UsageError after this worker's first step, and where it has not the whole model.
        """
        self._whole_state.put_back(state)

    @property
    def _whole_state(self) -> WholeState:
        if self._state is None:
            raise UsageError("call run.optimizer(...) first: it makes this worker a member")
        return self._state

    def on_membership_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the set of workers changes, between two rounds."""
        self._training.listeners.append(listener)

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

    def _close(self, *, failed: bool) -> None:
        if self._closed:
            return
        self._closed = True
        if self._data is not None:
            self._data.close()
        if self._kept is not None:
            self._kept.close()
        try:
            self._training.close(failed=failed)
        finally:
            self._loop.close()


def _number(key: str, item: float | torch.Tensor) -> float:
    try:
        return float(item.detach()) if isinstance(item, torch.Tensor) else float(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"metric {key}: {error}", field=key, limit="one number") from error
