"""Refusing a job whose plugins are not installed here, before anything is started for it."""

from __future__ import annotations

from elasticps.api.choice import check_choice
from elasticps.api.codec_choice import check_codec
from elasticps.api.plugins import DATA_POLICIES, PLACEMENTS
from elasticps.api.strategy_choice import check_strategy
from elasticps.core.chosen import Chosen


def check_chosen(chosen: Chosen) -> None:
    """Raise UsageError or PluginError, naming the field; see ``api.choice.check_choice``."""
    check_strategy(chosen.strategy)
    check_codec(chosen.codec)
    check_choice(DATA_POLICIES, chosen.data_policy, "data_policy")
    check_choice(PLACEMENTS, chosen.placement, "placement")
