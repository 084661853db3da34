"""``elasticps daemon``, as far as its configuration."""

from __future__ import annotations

from elasticps.cli.daemon import daemon, settings_of
from elasticps.cli.main import cli
from elasticps.daemon.config import DaemonConfig


def config(*args: str) -> DaemonConfig:
    """The configuration that the command makes of its arguments and the environment."""
    # A command keeps the first help option that it was asked with: here the one that users see.
    with daemon.make_context("daemon", list(args), **cli.context_settings) as context:
        return settings_of(context.params).config()
