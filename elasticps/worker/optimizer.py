"""The optimizer that a script holds: a real ``torch.optim.Optimizer`` that steps on servers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from elasticps.core.blocks import Hyperparameters
from elasticps.errors import UsageError
from elasticps.worker.amp import unscale
from elasticps.worker.clipping import Clipping
from elasticps.worker.device import Staged
from elasticps.worker.optimizer_state import States, by_block, by_parameter, loaded
from elasticps.worker.parameters import ParamGroup, plain
from elasticps.worker.schedule import Schedule

if TYPE_CHECKING:
    from elasticps.worker.training import Training


class ElasticOptimizer(torch.optim.Optimizer):
    """Schedulers, hooks, closures and ``param_groups`` behave as with the class it stands for.

    ``step`` pushes every gradient, waits until the round is whole, and reads the new parameters.
    The optimizer's state lives on the shard servers, beside its blocks: ``state`` stays empty, and
    ``state_dict`` fetches it. ``local`` is given where the strategy has the servers run another:
    the optimizer that steps in this worker, whose state then is the state; but for ``served``,
    parameters for which the servers run this one all the same.
    """

    def __init__(
        self,
        training: Training,
        groups: Sequence[ParamGroup],
        defaults: dict[str, Any],
        clipping: Clipping,
        *,
        local: torch.optim.Optimizer | None = None,
        served: Collection[torch.Tensor] = (),
        staged: Staged | None = None,
    ) -> None:
        self._sealed = False
        super().__init__(list(groups), dict(defaults))
        self._sealed = True
        self._training = training
        self._local = local
        self._clipping = clipping
        self._served = frozenset(served)
        self._staged = staged or Staged(())
        self._described = [plain(group) for group in groups]
        self._schedules: list[Schedule] = []
        # To a ``GradScaler``: call step() whatever has overflowed, and say so (see amp.py).
        self._step_supports_amp_scaling = True

    @property
    def clip_grad_norm(self) -> float | None:
        """What no step's gradient may be longer than; None for no bound. May be set between steps.

        The gradient is the round's: the mean over all workers' samples, of all parameters, clipped
        as ``torch.nn.utils.clip_grad_norm_`` does locally. Where each worker steps by itself (see
        the strategies, and the consistencies without rounds) it is that worker's. As with a rate, a
        round takes the bound of its lowest rank.
        """
        return self._clipping.bound

    @clip_grad_norm.setter
    def clip_grad_norm(self, bound: float | None) -> None:
        self._clipping.bound = bound

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last gradient that was to be clipped, before it was; None before that."""
        return self._clipping.norm

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take part in one round; on return the parameters are those of the next.

        ``closure`` is evaluated once, with gradients on. Called by a ``torch.amp.GradScaler`` it
        takes part without a gradient where one has overflowed. Raises JobFailed when the job ended,
        and WorkerRetired (a SystemExit) when this worker was asked to leave and now has.
        """
        self._bring_schedules_to_the_job()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        unscale(self)
        self._training.step(self.changed_options())
        return loss

    def wait_for_values(self) -> None:
        """Wait until all parameters have the last round's values (for ``overlap_forward``).

        For who reads parameters that were taken out of the model before the step.
        """
        self._training.arrive()

    def catch_up(self, scheduler: LRScheduler, *, every: int = 1) -> None:
        """Bring ``scheduler`` to the job's round, now and before each step from now on.

        So a worker that joins later, that had no samples for a round, or that resumes a checkpoint,
        has the rate of those who were there throughout. ``scheduler.step()`` need not be called any
        more, and may be. ``every``: the rounds to one step of the scheduler.

        Raises UsageError for ReduceLROnPlateau, see ``adopt_options``.
        """
        self._schedules.append(Schedule(scheduler, every))
        self._bring_schedules_to_the_job()

    def _bring_schedules_to_the_job(self) -> None:
        if not self._schedules:
            return
        rounds = self._training.turn.round - 1
        # Torch warns of a scheduler that steps first; the job's optimizer has stepped, elsewhere.
        if rounds:
            self._opt_called = True
        for schedule in self._schedules:
            schedule.bring_to(rounds)

    def adopt_options(self) -> None:
        """Set each group's options as the job's last round had them.

        For a worker that joins later and whose policy depends on more than the round: make the
        scheduler first, for it takes the group's rate for the one that the job began with.
        """
        for group, hyper in zip(self.param_groups, self._training.fetch_options(), strict=True):
            group.update(
                {
                    key: tuple(item) if isinstance(item, list) else item
                    for key, item in hyper.items()
                }
            )

    def changed_options(self) -> list[Hyperparameters]:
        """For each group, the options that a scheduler or the script has changed."""
        return [
            {
                key: item
                for key, item in plain(group).items()
                if key in described and item != described[key]
            }
            for group, described in zip(self.param_groups, self._described, strict=True)
        ]

    def options_of_the_step(self) -> list[Hyperparameters]:
        """As ``changed_options``, once schedules are where the step will have them."""
        self._bring_schedules_to_the_job()
        return self.changed_options()

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Refused once the job's model is known to the servers."""
        if self._sealed:
            raise UsageError(
                "parameters cannot be added to a job that has begun",
                field="param_group",
                hint="give all param groups to run.optimizer(..., groups=[...])",
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the state fetched from the servers: it loads into the local class."""
        if self._local is not None and not self._served:
            return self._local.state_dict()
        return self.state_dict_of(self._training.fetch_states())

    def state_dict_of(self, states: States) -> dict[str, Any]:
        """As ``state_dict``, of what has been fetched already."""
        local = self._local
        if local is not None and not self._served:
            return local.state_dict()
        found = by_parameter(self._training.memory, states)
        state = self._staged.of_device(found)
        if local is not None:
            state = {name: item for name, item in state.items() if name in self._served}
            state.update((name, item) for name, item in local.state.items() if name not in state)
        self.state.update(state)
        try:
            return super().state_dict()
        finally:
            self.state.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; state and parameters go to the servers, so load the model's values first.

        In a job that has finished a round already, this worker's copy is out of date: the servers
        keep what they have, and the parameters are read from them again.

        Raises UsageError where this worker steps by itself and has begun to: its parameters and its
        state would be of two times.
        """
        if self._local is not None and self._training.steps:
            raise UsageError(
                f"this worker has taken {self._training.steps} steps by itself",
                field="load_state_dict",
                limit="before the first step, where the strategy has workers step",
            )
        super().load_state_dict(state_dict)
        masters = dict.fromkeys(item.parameter for item in self._training.memory if item.master)
        wide = self._staged.of_device(masters)
        state = loaded(wide, self.param_groups, state_dict, self.state)
        self.state.clear()
        if self._local is not None:
            self._local.load_state_dict(state_dict)
            self._local.param_groups = self.param_groups
            state = {name: item for name, item in state.items() if name in self._served}
        if self._training.round == 0:
            self._staged.values_to_host()
            self._training.give_states(by_block(self._training.memory, self._staged.of_host(state)))
        else:
            self._training.read_values()
