"""SIGHUP: what can be changed in a living daemon is read anew, the rest is named and left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.notify import Notifier
from elasticps.daemon.settings import SETTINGS
from elasticps.errors import ElasticError

log = logging.getLogger(__name__)


def reloaded(
    old: DaemonConfig, new: DaemonConfig
) -> tuple[DaemonConfig, tuple[str, ...], tuple[str, ...]]:
    """``old`` with what of ``new`` can be reloaded; keys that changed, keys that need a restart."""
    differ = [
        setting
        for setting in SETTINGS
        if not setting.is_part
        and getattr(old, setting.field_name) != getattr(new, setting.field_name)
    ]
    taken = [setting for setting in differ if setting.reload]
    left = [setting.key for setting in differ if not setting.reload]
    left += [name for name in ("etcd", "security") if getattr(old, name) != getattr(new, name)]
    fields = {setting.field_name: getattr(new, setting.field_name) for setting in taken}
    return replace(old, **fields), tuple(setting.key for setting in taken), tuple(left)


class Reload:
    """``now`` reads the configuration again and gives ``take`` what is in force from then on.

    A configuration that is wrong changes nothing; the log says why.
    """

    def __init__(
        self,
        config: DaemonConfig,
        read: Callable[[], DaemonConfig],
        take: Callable[[DaemonConfig], None],
        notifier: Notifier,
    ) -> None:
        self._config = config
        self._read = read
        self._take = take
        self._notifier = notifier

    def now(self) -> str:
        """Returns what became of it, in a line."""
        self._notifier.reloading()
        try:
            self._config, taken, left = reloaded(self._config, self._read())
        except ElasticError as error:
            log.error("the configuration stays as it was: %s", error)
            return f"reload refused: {error.what}"
        if left:
            log.warning("a change of these waits for a restart: %s", ", ".join(left))
        log.info("configuration reloaded, changed: %s", ", ".join(taken) or "nothing")
        self._take(self._config)
        return "configuration reloaded"
