"""A job's model and optimizer as one plain torch state, for scripts that save by themselves."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch

from elasticps.errors import UsageError
from elasticps.worker.device import Staged
from elasticps.worker.optimizer import ElasticOptimizer
from elasticps.worker.optimizer_state import by_block, values_by_parameter
from elasticps.worker.training import Training

log = logging.getLogger(__name__)

MODEL = "model"
OPTIMIZER = "optimizer"
ROUND = "round"


class WholeState:
    """Takes the state of ``model``, without what torch.compile makes of it, and puts it back."""

    def __init__(
        self,
        training: Training,
        model: torch.nn.Module,
        optimizer: ElasticOptimizer,
        staged: Staged,
    ) -> None:
        self._training = training
        self._model = getattr(model, "_orig_mod", model)
        self._optimizer = optimizer
        self._staged = staged

    def take(self) -> dict[str, Any]:
        """``Run.state_dict``."""
        training = self._training
        if not training.is_published:
            raise UsageError(
                f"the shards have not all of round {training.round} yet: the job's strategy hands"
                " it in later",
                field="run.state_dict",
                hint="take it after a later step, or have checkpoints made: --checkpoint-dir",
            )
        states = training.fetch_states()
        values = self._staged.of_device(values_by_parameter(training.memory, states))
        model = {
            key: values[item].clone() if item in values else _apart(item)
            for key, item in self._model.state_dict(keep_vars=True).items()
        }
        return {
            MODEL: model,
            OPTIMIZER: copy.deepcopy(self._optimizer.state_dict_of(states)),
            ROUND: training.round,
        }

    def put_back(self, state: Mapping[str, Any]) -> None:
        """``Run.load_state_dict``."""
        training = self._training
        self._check(state)
        self._model.load_state_dict(state[MODEL])
        if training.round:
            log.info("the job is at round %d already, and keeps what it has", training.round)
        if state.get(OPTIMIZER) is not None:
            self._optimizer.load_state_dict(state[OPTIMIZER])
        elif training.round:
            training.read_values()
        else:
            self._staged.values_to_host()
            training.give_states(by_block(training.memory, {}))

    def _check(self, state: Mapping[str, Any]) -> None:
        field = "run.load_state_dict"
        if not isinstance(state.get(MODEL), Mapping):
            raise UsageError(
                f"a state with {', '.join(map(str, state)) or 'nothing'}",
                field=field,
                limit=f"what run.state_dict() gives: {MODEL}, {OPTIMIZER}, {ROUND}",
            )
        if self._training.steps:
            raise UsageError(
                f"this worker has taken {self._training.steps} steps of the job, which goes on",
                field=field,
                limit="before the first step",
                hint="to go back, end the job and begin one that loads the state, or --resume",
            )
        if not all(item.is_held for item in self._training.memory):
            raise UsageError(
                "a part of the model is in other workers alone",
                field=field,
                limit="strategies whose workers have the whole model",
                hint="elasticps checkpoint import makes a checkpoint of a state: --resume that",
            )


def _apart(item: Any) -> Any:
    """A buffer, a frozen parameter, or what a module has of its own beside them."""
    if isinstance(item, torch.Tensor):
        return item.detach().clone()
    return copy.deepcopy(item)
