"""Whether the plugins that a job chose can be made: told to the daemon, which never loads torch."""

from __future__ import annotations

from collections.abc import Callable

from elasticps.api.job_codec import load_codec
from elasticps.api.strategy_choice import load_strategy
from elasticps.errors import ElasticError
from elasticps.wire.control_messages import MakePlugins, PluginsMade


def made(asked: MakePlugins) -> PluginsMade:
    """Make them, and let them go. May take a while: the first time their modules are imported."""
    wanted: tuple[tuple[str, str, Callable[[str], object]], ...] = (
        ("strategy", asked.strategy, load_strategy),
        ("codec", asked.codec, load_codec),
    )
    for field, text, load in wanted:
        try:
            load(text)
        except ElasticError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            limit = error.limit or ""
            return PluginsMade(asked.strategy, asked.codec, what=what, field=field, limit=limit)
    return PluginsMade(asked.strategy, asked.codec)
