"""A script's model and optimizer as a job's: what the servers are told, what stays here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elasticps.api.chosen_strategy import ChosenStrategy
from elasticps.api.optimizer import Optimizer
from elasticps.api.pipeline import Pipeline
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.api.strategy import ServedOptimizer, Strategy
from elasticps.core.blocks import HALF, Model
from elasticps.core.chosen import DEFAULT_STRATEGY
from elasticps.core.consistency import Consistency
from elasticps.errors import UsageError
from elasticps.optimizers.by_group import KEY as OPTIMIZER
from elasticps.optimizers.by_group import NAME as BY_GROUP
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.tensors import dtype_name
from elasticps.worker.parameters import ParamGroup, describe
from elasticps.worker.untrained import untrained_of


@dataclass(frozen=True, slots=True, kw_only=True)
class JobModel:
    """``tensors`` are the trained parameters in the order of ``described``'s.

    ``frozen`` are those, by name, that would have been trained if they had needed a gradient.
    ``local`` is the optimizer that a single process would use. ``follows``: for each param group of
    the servers the one of the script whose options it follows, None where the strategy has the
    servers run another optimizer.
    """

    described: Model
    tensors: Sequence[torch.Tensor]
    frozen: Mapping[str, torch.Tensor]
    local: torch.optim.Optimizer
    follows: Sequence[int | None]

    @property
    def follows_script(self) -> bool:
        """Do the servers run the script's optimizer for all parameters?"""
        return None not in self.follows

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters that the job trains, by name."""
        rows = zip(self.described.parameters, self.tensors, strict=True)
        return {row.name: tensor for row, tensor in rows}

    @property
    def served_as_chosen(self) -> list[torch.Tensor]:
        """The parameters for which they do."""
        rows = zip(self.described.parameters, self.tensors, strict=True)
        return [tensor for row, tensor in rows if self.follows[row.group] is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What the servers run: an optimizer plugin with its options, over groups that follow."""

    name: str
    options: Mapping[str, Any]
    groups: Sequence[ParamGroup]
    follows: Sequence[int | None]
    elementwise: bool


def job_model(
    model: torch.nn.Module,
    chosen: ServedOptimizer,
    groups: Sequence[ParamGroup] | None,
    strategy: Strategy,
    block_bytes: int,
    *,
    master_weights: bool = True,
) -> JobModel:
    """``model`` and the script's choice, as ``strategy`` wants them served.

    ``master_weights``: of what is in half precision the servers keep float32 copies, where they run
    the script's optimizer. Where workers step they give out what those have, to the bit.

    Raises UsageError for a model or option that cannot be served, PluginError for a plugin.
    """
    plugin = _plugin(chosen.name)
    # What torch.compile made names its parameters after itself; a checkpoint is to fit both.
    model = getattr(model, "_orig_mod", model)
    trained = [(key, item) for key, item in model.named_parameters() if item.requires_grad]
    if not trained:
        raise UsageError("no parameter of the model requires a gradient", field="model")
    wanted = groups or [{"params": [item for _, item in trained]}]
    local = _made(plugin, wanted, chosen.options)
    _check_groups(model, local.param_groups)
    in_groups = {id(item) for group in local.param_groups for item in group["params"]}
    names = {id(item): key for key, item in trained if id(item) in in_groups}
    by_name = strategy.served_optimizers(chosen, list(names.values()))
    served = _served(local.param_groups, chosen, {key: by_name[names[key]] for key in names})
    described = describe(
        trained,
        served.groups,
        optimizer=served.name,
        options=dict(served.options),
        elementwise=served.elementwise,
        block_bytes=block_bytes,
        untrained=untrained_of(model, trained),
        at_once=strategy.applied_at_once(list(names.values())),
        masters=_masters(served, names) if master_weights else (),
    )
    tensors = dict(trained)
    return JobModel(
        described=described,
        tensors=[tensors[row.name] for row in described.parameters],
        frozen={} if groups else _frozen(model),
        local=local,
        follows=served.follows,
    )


def _frozen(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: item for name, item in model.named_parameters() if not item.requires_grad}


def check_frozen(frozen: Mapping[str, torch.Tensor]) -> None:
    """Raise UsageError where the script has unfrozen what the servers do not train."""
    for name, item in frozen.items():
        if item.requires_grad:
            raise UsageError(
                f"{name} needs a gradient now and did not at run.optimizer(...)",
                field=name,
                limit="what is trained is known to the servers from the beginning",
                hint="give run.optimizer all of it, needing a gradient, and a group of its own "
                "with lr=0.0 to what is to be trained later",
            )


def check_dtypes(served: Iterable[tuple[str, torch.Tensor, torch.dtype]]) -> None:
    """Raise UsageError where the script has given a parameter another dtype than it had, by
    ``model.half()``, say: its blocks on the servers are of the old one."""
    for name, item, dtype in served:
        if item.dtype is not dtype:
            raise UsageError(
                f"parameter {name} is of {dtype_name(item.dtype)} now, and was of"
                f" {dtype_name(dtype)} at run.optimizer(...)",
                field=name,
                limit="the dtype of a parameter stays as it is",
                hint="convert the model before run.optimizer(...); to compute in another dtype use"
                " torch.autocast",
            )


def _masters(served: _Served, names: Mapping[int, str]) -> list[str]:
    chosen = zip(served.groups, served.follows, strict=True)
    return [
        names[id(item)]
        for group, follows in chosen
        if follows is not None
        for item in group["params"]
        if id(item) in names and dtype_name(item.dtype) in HALF
    ]


def check_at_once(model: Model, job: JobInfo) -> None:
    """Raise UsageError for a job that cannot have pushes between its rounds."""
    at_once = [row.name for row in model.parameters if row.at_once]
    if not at_once or job.consistency is not Consistency.SYNC:
        return
    for field in ("checkpoint_dir", "resume", "backup_workers"):
        if getattr(job, field):
            raise UsageError(
                f"pushes of {at_once[0]} are applied as they come, between rounds too",
                field=field,
                limit="no checkpoints and no backup workers with such a strategy",
            )


def check_overlap(job: JobInfo, field: str) -> None:
    """Raise UsageError for a job whose steps are not each a round of the gradients of all."""
    in_step = job.consistency is Consistency.SYNC and not job.backup_workers
    if job.strategy != DEFAULT_STRATEGY or not in_step:
        raise UsageError(
            f"{field} in a job of strategy {job.strategy}, {job.consistency.value}",
            field=field,
            limit=f"--strategy {DEFAULT_STRATEGY} in sync consistency, without backup workers",
        )


def check_clipping(model: JobModel, bound: float | None) -> None:
    """Raise UsageError where the parts of one step's gradient are nowhere together."""
    several = not model.follows_script and bool(model.served_as_chosen)
    if bound is not None and (several or any(row.at_once for row in model.described.parameters)):
        raise UsageError(
            "parameters of several strategies have no gradient whose norm could be taken",
            field="clip_grad_norm",
            limit="one strategy for all parameters",
        )


def check_staged(model: JobModel, *, needed: bool, is_cut: bool, overlaps: bool) -> None:
    """Raise UsageError for parameters on a GPU where the workers do more with them than compute."""
    if needed and overlaps:
        raise UsageError(
            "parameters on a GPU are copied when all of a step is there",
            field="device",
            limit="cpu with overlap_backward and overlap_forward",
        )
    if needed and (is_cut or not model.follows_script):
        raise UsageError(
            "parameters on a GPU, and a strategy whose workers step or exchange by themselves",
            field="device",
            limit="cuda with data-parallel, in any consistency; else cpu",
        )


def _served(
    groups: Sequence[ParamGroup], chosen: ServedOptimizer, by_id: Mapping[int, ServedOptimizer]
) -> _Served:
    """``by_id``: the optimizer of each parameter, by its ``id``."""
    kinds = list(by_id.values())
    first = kinds[0] if kinds else chosen
    if not all(_alike(kind, first, chosen) for kind in kinds):
        return _mixed(groups, chosen, by_id)
    plugin, follows_script = _plugin(first.name), first is chosen
    if not follows_script:
        bare = [{"params": group["params"]} for group in groups]
        groups = _made(plugin, bare, first.options).param_groups
    return _Served(
        name=first.name,
        options=first.options,
        groups=groups,
        follows=[index if follows_script else None for index in range(len(groups))],
        elementwise=plugin.elementwise,
    )


def _mixed(
    groups: Sequence[ParamGroup], chosen: ServedOptimizer, by_id: Mapping[int, ServedOptimizer]
) -> _Served:
    """Several optimizers, as ``by-group`` has them: each group is cut where they differ."""
    parts: list[ParamGroup] = []
    follows: list[int | None] = []
    for index, group in enumerate(groups):
        cut: list[tuple[ServedOptimizer, list[torch.Tensor]]] = []
        for item in group["params"]:
            kind = by_id.get(id(item), chosen)
            same = [items for other, items in cut if _alike(kind, other, chosen)]
            if same:
                same[0].append(item)
            else:
                cut.append((kind, [item]))
        for kind, items in cut:
            parts.append(_part(group, kind, items, is_chosen=kind is chosen))
            follows.append(index if kind is chosen else None)
    plugins = {_plugin(part[OPTIMIZER]) for part in parts}
    return _Served(
        name=BY_GROUP,
        options={},
        groups=_made(_plugin(BY_GROUP), parts, {}).param_groups,
        follows=follows,
        elementwise=all(plugin.elementwise for plugin in plugins),
    )


def _alike(one: ServedOptimizer, other: ServedOptimizer, chosen: ServedOptimizer) -> bool:
    """The script's choice is another than one that is equal to it: it follows the schedules."""
    return one == other and (one is chosen) == (other is chosen)


def _part(
    group: ParamGroup, kind: ServedOptimizer, items: list[torch.Tensor], *, is_chosen: bool
) -> ParamGroup:
    """A group of ``by-group`` with all options of ``kind``, those of the script's ``group``."""
    if not is_chosen:
        (group,) = _made(_plugin(kind.name), [{"params": items}], kind.options).param_groups
    lost = sorted(set(kind.options) - set(group))
    if lost:
        raise UsageError(
            f"{lost[0]} is an option of {kind.name}, and of none of its param groups",
            field=lost[0],
            limit="options of param groups, where a job has several optimizers",
        )
    return {OPTIMIZER: kind.name, **group, "params": items}


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


def pipeline_of(model: torch.nn.Module | Pipeline, strategy: ChosenStrategy) -> Pipeline | None:
    """The script's pipeline; all of it is here where the strategy computes with the whole model."""
    if isinstance(model, Pipeline):
        if not strategy.wants_pipeline:
            for layer in range(len(model.layers)):
                if not model.is_held(layer):
                    model.draw(layer)
        return model
    if strategy.wants_pipeline:
        raise UsageError(
            "the job's strategy cuts the model into stages: it must be given as layers",
            field="model",
            hint="run.optimizer(run.pipeline(nn.Sequential(...), loss_fn), ...)",
        )
    return None
