"""A machine as its daemon's configuration describes it: what the machine's checks look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from elasticps.daemon.config import DaemonConfig, is_loopback
from elasticps.daemon.settings import SETTINGS
from elasticps.daemon.sources import FILE, Settings
from elasticps.doctor.service_user import ServiceUser, service_user
from elasticps.store.config import StoreConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The settings of a daemon that may not be able to start with them."""

    settings: Settings

    @property
    def node(self) -> str:
        return str(self.settings.values["node"].value)

    @property
    def cluster(self) -> str:
        return str(self.settings.values["cluster"].value)

    def listens(self, key: str) -> tuple[str, int]:
        """Host and port of ``http`` or ``data``."""
        return cast("tuple[str, int]", self.settings.values[key].value)

    @property
    def shard_servers(self) -> int:
        """How many ports the data plane has, from that of ``data`` on."""
        return cast("int", self.settings.values["shard_servers"].value)

    def path(self, key: str) -> Path | None:
        value = self.settings.values[key].value
        return value if isinstance(value, Path) else None

    def runs_as(self) -> ServiceUser | None:
        """The user of the service, where that is whose settings these are and root asks."""
        return service_user() if self.settings.file in (None, FILE) else None

    def config(self) -> DaemonConfig:
        """What the daemon would start with. Raises UsageError where it would not."""
        return self.settings.config()

    def store(self) -> StoreConfig:
        """Where etcd is, whatever else is wrong. Raises UsageError."""
        return self.settings.store()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Of etcd, as they were given."""
        return cast("tuple[str, ...]", self.settings.values["etcd.endpoints"].value)

    @property
    def etcd_is_elsewhere(self) -> bool:
        """Whether some endpoint of etcd is off loopback: then so are other nodes."""
        return not all(is_loopback(_host(endpoint)) for endpoint in self.endpoints)


def _host(endpoint: str) -> str:
    return endpoint.rpartition("//")[2].rpartition(":")[0].strip("[]")


KEYS = {setting.key: setting for setting in SETTINGS}
"""How each setting is spelt, for a fix that names it."""


def told_by(key: str) -> str:
    """``http (--http)``."""
    return f"{key} ({KEYS[key].flag_name})"
