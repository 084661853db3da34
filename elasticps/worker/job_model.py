"""A script's model and optimizer as a job's: what the servers are told, what stays here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.api.strategy import ServedOptimizer, Strategy
from elasticps.core.blocks import Model
from elasticps.errors import UsageError
from elasticps.worker.parameters import ParamGroup, describe, fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class JobModel:
    """``tensors`` are the trained parameters in the order of ``described``'s.

    ``local`` is the optimizer that a single process would use; ``follows_script``: the servers run
    the same.
    """

    described: Model
    tensors: Sequence[torch.Tensor]
    local: torch.optim.Optimizer
    follows_script: bool


def job_model(
    model: torch.nn.Module,
    chosen: ServedOptimizer,
    groups: Sequence[ParamGroup] | None,
    strategy: Strategy,
    block_bytes: int,
) -> JobModel:
    """``model`` and the script's choice, as ``strategy`` wants them served.

    Raises UsageError for a model or option that cannot be served, PluginError for a plugin.
    """
    plugin = _plugin(chosen.name)
    trained = [(key, item) for key, item in model.named_parameters() if item.requires_grad]
    if not trained:
        raise UsageError("no parameter of the model requires a gradient", field="model")
    wanted = groups or [{"params": [item for _, item in trained]}]
    local = _made(plugin, wanted, chosen.options)
    _check_groups(model, local.param_groups)
    served, served_groups = strategy.served_optimizer(chosen), local.param_groups
    if served is not chosen:
        plugin = _plugin(served.name)
        bare = [{"params": group["params"]} for group in local.param_groups]
        served_groups = _made(plugin, bare, served.options).param_groups
    described = describe(
        trained,
        served_groups,
        optimizer=served.name,
        options=dict(served.options),
        elementwise=plugin.elementwise,
        block_bytes=block_bytes,
        untrained=fingerprint(model, trained),
    )
    by_name = dict(trained)
    return JobModel(
        described=described,
        tensors=[by_name[row.name] for row in described.parameters],
        local=local,
        follows_script=served is chosen,
    )


def _plugin(name: str) -> Optimizer:
    return load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]


def _made(
    plugin: Optimizer, groups: Sequence[ParamGroup], options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    try:
        return plugin.create(groups, options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the optimizer cannot be made: {error}", field="options") from error


def _check_groups(model: torch.nn.Module, groups: Sequence[ParamGroup]) -> None:
    """A parameter that is not the model's would never be trained."""
    known = {id(item) for item in model.parameters()}
    for index, group in enumerate(groups):
        if any(id(item) not in known for item in group["params"]):
            raise UsageError(
                f"param group {index} has a parameter that is not the model's", field="groups"
            )
