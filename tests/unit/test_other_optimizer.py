"""Which optimizer may go on from whose state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from elasticps.checkpoint.other_optimizer import for_optimizer
from elasticps.checkpoint.snapshot import MASTER, Snapshot
from elasticps.errors import CheckpointError
from tests.support.checkpoints import model, snapshot

PLACE = Path("saved")


def of(optimizer: str, **state: float) -> Snapshot:
    found = snapshot(3)
    kept = {name: {**item, **state} for name, item in found.state.items()}
    return replace(found, model=model(optimizer), state=kept)


def test_the_same_optimizer_takes_all_of_it() -> None:
    found = of("ftrl")
    assert for_optimizer(found, model("ftrl"), PLACE, reset=False) is found


def test_moments_are_kept_between_adam_and_adamw() -> None:
    for there, here in (("adam", "adamw"), ("adamw", "adam")):
        adapted = for_optimizer(of(there), model(here), PLACE, reset=False)
        assert adapted.model.optimizer == here
        assert adapted.state["scale"].keys() >= {"step", "exp_avg"}


def test_anything_follows_sgd_with_a_fresh_state_and_its_master_copies() -> None:
    adapted = for_optimizer(of("sgd", **{MASTER: 1.0}), model("ftrl"), PLACE, reset=False)
    assert all(state == {MASTER: 1.0} for state in adapted.state.values())


@pytest.mark.parametrize("pair", [("adam", "ftrl"), ("ftrl", "adamw"), ("adamw", "sgd")])
def test_a_state_that_does_not_fit_is_refused_with_both_named_unless_it_is_reset(
    pair: tuple[str, str],
) -> None:
    there, here = pair
    with pytest.raises(CheckpointError, match=f"{there} there, {here} here") as caught:
        for_optimizer(of(there), model(here), PLACE, reset=False)
    assert (caught.value.field, caught.value.where) == ("optimizer", "saved")
    assert "--resume-reset-optimizer" in str(caught.value.hint)
    assert for_optimizer(of(there), model(here), PLACE, reset=True).state == {}


def test_an_optimizer_that_the_strategy_has_the_servers_run_is_refused_with_its_name() -> None:
    with pytest.raises(CheckpointError, match="sgd here, which is what the servers run for gossip"):
        for_optimizer(of("adamw"), model("sgd"), PLACE, reset=False, strategy="gossip")


def test_amsgrad_does_not_begin_without_its_maximum() -> None:
    strict = msgspec.structs.replace(model("adamw"), options={"amsgrad": True})
    with pytest.raises(CheckpointError, match="adam without amsgrad there, adamw with it here"):
        for_optimizer(of("adam"), strict, PLACE, reset=False)
    assert for_optimizer(of("adam", max_exp_avg_sq=1.0), strict, PLACE, reset=False).state
