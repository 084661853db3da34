"""All that a daemon is told at its start, validated once, before anything is opened."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from elasticps.daemon.cores import MAX_SERVERS
from elasticps.errors import UsageError

if TYPE_CHECKING:  # the store's package brings gRPC along, which a check of options need not
    from elasticps.security.tls import TlsFiles
    from elasticps.store.config import StoreConfig

DEFAULT_HTTP = ("127.0.0.1", 7400)
DEFAULT_DATA = ("127.0.0.1", 0)
MAX_LEASE_TTL_S = 60
MAX_DRAIN_TIMEOUT_S = 86_400.0
MAX_WEIGHT = 1_000_000.0
MAX_WORKER_SLOTS = 1024
MAX_LABELS = 64
DEFAULT_KEPT_JOBS = 200
MAX_KEPT_JOBS = 100_000
LOG_LEVELS = ("debug", "info", "warning", "error")

_NODE = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_CLUSTER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,62})")


def default_node() -> str:
    """The machine's host name in lower case."""
    return socket.gethostname().lower()


def default_threads_per_worker() -> int:
    """Half of the cores: a worker shares its machine with a shard server."""
    return max(1, (os.cpu_count() or 1) // 2)


def is_service() -> bool:
    """Whether this process was started by its systemd unit, which makes the folder of its state."""
    return os.environ.get("STATE_DIRECTORY", "").endswith("/elasticps")


def default_state_dir() -> Path:
    """/var/lib/elasticps for root and the service, else below XDG_STATE_HOME or ~/.local/state."""
    return _machines("/var/lib/elasticps") or _xdg_state_home() / "elasticps"


def default_log_dir() -> Path:
    """/var/log/elasticps for root and the service, else elasticps/log beside the state."""
    return _machines("/var/log/elasticps") or _xdg_state_home() / "elasticps" / "log"


def default_runtime_dir() -> Path:
    """/run/elasticps for root and the service, else below XDG_RUNTIME_DIR or beside the state."""
    session = os.environ.get("XDG_RUNTIME_DIR")
    own = Path(session) / "elasticps" if session else _xdg_state_home() / "elasticps" / "run"
    return _machines("/run/elasticps") or own


def _machines(path: str) -> Path | None:
    return Path(path) if os.geteuid() == 0 or is_service() else None


def _xdg_state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What lets a daemon listen off loopback: TLS, and the tokens of who may use its API.

    ``tokens`` is the file of ``elasticps token create``. ``plain_all_reduce`` lets the sums of
    all-reduce cross the network, which gloo does not encrypt.
    """

    tls: TlsFiles
    tokens: Path
    plain_all_reduce: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """A daemon's settings. Raises UsageError, naming field and limit, for what cannot work.

    ``http`` and ``data`` are the host and port that the API and the data plane listen at; port 0
    takes any free one. Off loopback both need ``security``, or ``allow_insecure_network``.
    ``weight`` is this node's share of the blocks beside the others' (1.0), however many
    ``shard_servers`` it runs; the second listens one port above ``data``, and so on. Each computes
    with ``threads_per_server``, None: with its share of the cores, up to a few.
    ``worker_slots`` is how many workers of one job it runs. ``lease_ttl_s`` is in whole seconds, as
    etcd counts; after ``drain_timeout_s`` a stopping daemon leaves although it still holds blocks;
    as leader it gives a job up when blocks have had no living replica for ``lost_after_s``, and
    forgets all ended jobs but the newest ``kept_jobs``. The folders are made by the daemon; daemons
    that share a machine need folders of their own. ``shared_memory``: workers give the shard
    servers of this machine their gradients and parameters to read and write.
    """

    etcd: StoreConfig
    cluster: str = "default"
    node: str = field(default_factory=default_node)
    http: tuple[str, int] = DEFAULT_HTTP
    data: tuple[str, int] = DEFAULT_DATA
    labels: Mapping[str, str] = field(default_factory=dict)
    zone: str = ""
    weight: float = 1.0
    worker_slots: int = 1
    lease_ttl_s: int = 5
    drain_timeout_s: float = 30.0
    lost_after_s: float = 30.0
    kept_jobs: int = DEFAULT_KEPT_JOBS
    threads_per_worker: int = field(default_factory=default_threads_per_worker)
    shard_servers: int = 1
    threads_per_server: int | None = None
    state_dir: Path = field(default_factory=default_state_dir)
    log_dir: Path = field(default_factory=default_log_dir)
    runtime_dir: Path = field(default_factory=default_runtime_dir)
    security: Security | None = None
    allow_insecure_network: bool = False
    log_level: str = "info"
    worker_units: bool = field(default_factory=is_service)
    shared_memory: bool = True

    def __post_init__(self) -> None:
        _check_name("node", self.node, _NODE, hint="--node NAME gives this machine another name")
        _check_name("cluster", self.cluster, _CLUSTER)
        _check_labels(self.labels)
        if self.zone:
            _check_name("zone", self.zone, _LABEL)
        if not 0.0 < self.weight <= MAX_WEIGHT:
            _refuse("weight", self.weight, f"more than 0, at most {MAX_WEIGHT:g}")
        _check_range("worker_slots", self.worker_slots, 0, MAX_WORKER_SLOTS)
        _check_range("lease_ttl_s", self.lease_ttl_s, 1, MAX_LEASE_TTL_S)
        _check_range("drain_timeout_s", self.drain_timeout_s, 0, MAX_DRAIN_TIMEOUT_S)
        _check_range("lost_after_s", self.lost_after_s, 0, MAX_DRAIN_TIMEOUT_S)
        _check_range("kept_jobs", self.kept_jobs, 0, MAX_KEPT_JOBS)
        _check_range("shard_servers", self.shard_servers, 1, MAX_SERVERS)
        if self.threads_per_server is not None:
            _check_range("threads_per_server", self.threads_per_server, 1, MAX_WORKER_SLOTS)
        _check_range("threads_per_worker", self.threads_per_worker, 1, MAX_WORKER_SLOTS)
        if self.log_level not in LOG_LEVELS:
            raise UsageError(
                f"{self.log_level[:80]!r} is no level",
                field="log_level",
                limit=", ".join(LOG_LEVELS),
            )
        for name in ("state_dir", "log_dir", "runtime_dir"):
            _check_directory(name, getattr(self, name))
        self._check_network()
        if self.security is not None:
            self._check_security(self.security)

    def _check_network(self) -> None:
        for name, (host, port) in (("http", self.http), ("data", self.data)):
            _check_listen(name, host, port)
            if not (is_loopback(host) or self.security or self.allow_insecure_network):
                raise UsageError(
                    f"without TLS and tokens {host} would open the cluster to whoever reaches it",
                    field=name,
                    limit="a loopback address",
                    hint="--tls-ca, --tls-cert, --tls-key and --tokens; see docs/security.md."
                    " --allow-insecure-network goes without, for trusted networks only",
                )
        host, first = self.data
        if not first:
            return
        last = first + self.shard_servers - 1
        _check_listen("data", host, last)  # the last shard server's
        if self.http[0] == host and first <= self.http[1] <= last:
            raise UsageError("http and data cannot share a port", field="data")

    def _check_security(self, security: Security) -> None:
        """Nothing that is named is left out of use because something is wrong with it."""
        from elasticps.security.tokens import read_tokens  # the command line loads this file alone

        if self.allow_insecure_network:
            raise UsageError(
                "TLS and tokens are given, and the network is to be insecure",
                field="allow_insecure_network",
                hint="leave it out",
            )
        security.tls.check(self.node)
        read_tokens(security.tokens)
        if not self.etcd.tls:
            for target in self.etcd.targets:
                host = target.rpartition(":")[0].strip("[]")
                if not is_loopback(host):
                    raise UsageError(
                        f"etcd at {target} without TLS: who reads or changes it owns the cluster",
                        field="etcd",
                        limit="https, or a loopback address",
                        hint="--etcd https://HOST:PORT --etcd-ca FILE",
                    )


def parse_listen(text: str, name: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[ipv6]:port". Raises UsageError that names the field."""
    from elasticps.wire.address import MAX_PORT, Address  # the command line loads this file alone

    try:
        address = Address.parse(f"tcp:{text}")
    except UsageError as error:
        raise UsageError(
            f"{text[:80]!r} is not a place to listen at: {error.what}",
            field=name,
            limit=f"host:port, the port 0 to {MAX_PORT}",
            hint=f"for example {DEFAULT_HTTP[0]}:{DEFAULT_HTTP[1]}",
        ) from None
    return address.host, address.port


def parse_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """The labels of "key=value" texts. Raises UsageError for another form or a key given twice."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.strip().partition("=")
        if not equals or not key:
            raise UsageError(f"{pair[:80]!r} is not a label", field="labels", limit="key=value")
        if key in labels:
            raise UsageError(f"the label {key!r} is given twice", field="labels")
        labels[key] = value
    return labels


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener at ``host``; names are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_listen(name: str, host: str, port: int) -> None:
    from elasticps.wire.address import Address

    try:
        Address.tcp(host, port)
    except UsageError as error:
        raise UsageError(error.what, field=name, limit=error.limit) from None


def _check_name(name: str, value: str, pattern: re.Pattern[str], hint: str | None = None) -> None:
    if not pattern.fullmatch(value):
        raise UsageError(
            f"{value[:80]!r} is not a name for a {name}",
            field=name,
            limit=pattern.pattern,
            hint=hint,
        )


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        _refuse("labels", len(labels), f"at most {MAX_LABELS} labels")
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or (value and not _LABEL.fullmatch(value)):
            raise UsageError(
                f"{f'{key}={value}'[:80]!r} is not a label",
                field="labels",
                limit=f"key=value, both {_LABEL.pattern}",
            )


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # false for NaN too
        _refuse(name, value, f"{least:g} to {most:g}")


def _check_directory(name: str, path: Path) -> None:
    if not (path.is_absolute() and str(path).isprintable()):
        raise UsageError(
            f"{str(path)[:80]!r} is not a folder",
            field=name,
            limit="an absolute path on one line",
        )


def _refuse(name: str, value: float, limit: str) -> None:
    what = f"{value:g}" if math.isfinite(value) else str(value)
    raise UsageError(f"{what} is out of range", field=name, limit=limit)
