"""Going on from a checkpoint with another optimizer: what of the state it keeps, if anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from elasticps.checkpoint.manifest import UNKNOWN_OPTIMIZER
from elasticps.checkpoint.snapshot import MASTER, Snapshot, State
from elasticps.core.blocks import Model
from elasticps.core.chosen import DEFAULT_STRATEGY
from elasticps.errors import CheckpointError

log = logging.getLogger(__name__)

SAME_MOMENTS = frozenset({"adam", "adamw"})
"""They keep the same (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization")."""
LOST_WITHOUT_HARM = frozenset({"sgd"})
"""Nothing, or a momentum, which some ten steps make anew."""
AMSGRAD = "max_exp_avg_sq"


def for_optimizer(
    found: Snapshot, model: Model, place: Path, *, reset: bool, strategy: str = DEFAULT_STRATEGY
) -> Snapshot:
    """``found`` as ``model``'s optimizer can go on from it; with ``reset`` it begins with no state.

    The optimizers are those of the servers, which ``strategy`` may have chosen.
    Raises CheckpointError, naming both optimizers, for a state that it cannot go on from.
    """
    there, here = found.model.optimizer, model.optimizer
    if there == UNKNOWN_OPTIMIZER or (there == here and not reset):
        return found
    described = msgspec.structs.replace(found.model, optimizer=here, elementwise=model.elementwise)
    if reset or (there in LOST_WITHOUT_HARM and there != here):
        log.warning("the state of %s is left in %s: %s begins with none", there, place, here)
        return replace(found, model=described, state=_without_state(found.state))
    if not {there, here} <= SAME_MOMENTS:
        raise _does_not_fit(place, there, here, strategy)
    if _wants_amsgrad(model) and not all(AMSGRAD in state for state in found.state.values()):
        raise _does_not_fit(place, f"{there} without amsgrad", f"{here} with it", strategy)
    log.warning("%s goes on from the moments of %s in %s", here, there, place)
    return replace(found, model=described)


def _without_state(state: Mapping[str, State]) -> dict[str, State]:
    """But for master copies, which are values."""
    return {name: {MASTER: item[MASTER]} for name, item in state.items() if MASTER in item}


def _wants_amsgrad(model: Model) -> bool:
    return any({**model.options, **group}.get("amsgrad") for group in model.groups)


def _does_not_fit(place: Path, there: str, here: str, strategy: str) -> CheckpointError:
    by = "" if strategy == DEFAULT_STRATEGY else f", which is what the servers run for {strategy}"
    return CheckpointError(
        f"the checkpoint has the state of another optimizer: {there} there, {here} here{by}",
        where=str(place),
        field="optimizer",
        limit="the same one; adam for adamw and the other way round; any after sgd",
        hint="--resume-reset-optimizer begins with the checkpoint's values and no optimizer state",
    )
