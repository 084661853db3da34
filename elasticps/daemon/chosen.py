"""Refusing a job whose plugins are not installed here, before anything is started for it."""

from __future__ import annotations

from elasticps.api.choice import check_choice, load_choice, parse_choice
from elasticps.api.codec_choice import check_codec
from elasticps.api.data_policy import DataPolicy
from elasticps.api.placement import Placement
from elasticps.api.plugins import DATA_POLICIES, PLACEMENTS, Contract, discover
from elasticps.api.strategy_choice import check_strategy
from elasticps.checkpoint.url import check_installed
from elasticps.core.chosen import Chosen
from elasticps.core.consistency import Guarantees
from elasticps.errors import PluginError

OURS = "elasticps"


def check_chosen(chosen: Chosen) -> None:
    """Raise UsageError or PluginError, naming the field; see ``api.choice.check_choice``.

    Options of strategies and codecs are looked at by ``making.Making``: those load torch.
    """
    check_strategy(chosen.strategy)
    check_codec(chosen.codec)
    _check_made(DATA_POLICIES, DataPolicy, chosen.data_policy, "data_policy")  # type: ignore[type-abstract]
    _check_made(PLACEMENTS, Placement, chosen.placement, "placement")  # type: ignore[type-abstract]


def check_places(wanted: Guarantees) -> None:
    """Raise UsageError where a URL of the job's needs a package that is not installed here."""
    check_installed(wanted.checkpoint_dir, "checkpoint_dir")
    check_installed(wanted.resume, "resume")


def _check_made(group: str, contract: type[Contract], text: str, field: str) -> None:
    """A built-in one is made, which costs nothing; a stranger's code does not run here."""
    check_choice(group, text, field)
    name = parse_choice(text, field).name
    if {each.distribution for each in discover(group) if each.name == name} != {OURS}:
        return
    try:
        load_choice(group, text, contract, field)
    except PluginError as error:
        what = f"{error.where}: {error.what}" if error.where else error.what
        raise PluginError(what, field=field, limit=error.limit) from None
