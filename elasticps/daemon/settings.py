"""Every setting of a daemon, in one table: flags, variables, the file and the docs follow from it.

A setting's name in the file is its key; ``lease_ttl`` is also ``--lease-ttl`` and
ELASTICPS_LEASE_TTL, ``etcd.ca`` is also ``--etcd-ca`` and ELASTICPS_ETCD_CA. What is given by a
flag goes before the variable, the variable before the file, the file before the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path

from elasticps.daemon.config import DaemonConfig, parse_labels, parse_listen
from elasticps.daemon.cores import numa_nodes, servers_for
from elasticps.errors import UsageError

DEFAULT_ETCD = ("127.0.0.1:2379",)
PREFIX = "ELASTICPS_"
AUTO = "auto"


class Kind(Enum):
    """What a setting's value is, in words for an error."""

    TEXT = "a text"
    WHOLE = "a whole number"
    WHOLE_OR_AUTO = "a whole number, or auto"
    NUMBER = "a number"
    SWITCH = "true or false"
    PATH = "an absolute path"
    LISTEN = "host:port"
    TEXTS = "a list of texts"
    LABELS = "a table of texts"


class _Unset(Enum):
    UNSET = "the field of DaemonConfig has the default"


UNSET = _Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table. A new field of DaemonConfig is settable once it has a row.

    ``field`` is that of DaemonConfig, by default the key with its dots as underscores; ``default``
    is for keys that have none there, for they are a part of its ``etcd`` or ``security``.
    ``default_text`` says in the docs what is computed at the start. ``reload``: takes effect at
    SIGHUP, without a restart.
    """

    key: str
    kind: Kind
    help: str
    field: str = ""
    default: object = UNSET
    default_text: str = ""
    flag: str = ""
    variable: str = ""
    metavar: str | None = None
    reload: bool = False

    @property
    def flag_name(self) -> str:
        return self.flag or "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def variable_name(self) -> str:
        return self.variable or PREFIX + self.key.replace(".", "_").upper()

    @property
    def field_name(self) -> str:
        return self.field or self.key.replace(".", "_")

    @property
    def is_part(self) -> bool:
        """Whether DaemonConfig has no field of its own for it."""
        return self.default is not UNSET


SETTINGS = (
    Setting(
        key="node",
        kind=Kind.TEXT,
        help="This machine's stable name, unique in the cluster.",
        default_text="the host name",
    ),
    Setting(
        key="cluster",
        kind=Kind.TEXT,
        help="The cluster to join or begin: machines with the same name and etcd work together.",
    ),
    Setting(
        key="etcd.endpoints",
        kind=Kind.TEXTS,
        flag="--etcd",
        variable="ELASTICPS_ETCD",
        metavar="HOST:PORT,...",
        default=DEFAULT_ETCD,
        help="etcd's endpoints, the same on every machine.",
    ),
    Setting(
        key="etcd.ca",
        kind=Kind.PATH,
        default=None,
        help="PEM file of the authority that signed etcd's certificates.",
    ),
    Setting(
        key="etcd.cert",
        kind=Kind.PATH,
        default=None,
        help="PEM file of this daemon's certificate for etcd.",
    ),
    Setting(
        key="etcd.key", kind=Kind.PATH, default=None, help="PEM file of that certificate's key."
    ),
    Setting(key="etcd.user", kind=Kind.TEXT, default=None, help="A user of etcd."),
    Setting(
        key="etcd.password_file",
        kind=Kind.PATH,
        default=None,
        help="The file with the user's password, mode 0600, or 0640 for the daemon's group.",
    ),
    Setting(key="http", kind=Kind.LISTEN, metavar="HOST:PORT", help="Where the HTTP API listens."),
    Setting(
        key="data",
        kind=Kind.LISTEN,
        metavar="HOST:PORT",
        help="Where the data plane listens; port 0 takes any free one.",
    ),
    Setting(
        key="allow_insecure_network",
        kind=Kind.SWITCH,
        help="Listen off loopback without TLS and tokens: for trusted networks only.",
    ),
    Setting(
        key="tls.ca",
        kind=Kind.PATH,
        default=None,
        help="PEM file of the cluster's authority, from elasticps certs.",
    ),
    Setting(
        key="tls.cert", kind=Kind.PATH, default=None, help="PEM file of this node's certificate."
    ),
    Setting(
        key="tls.key", kind=Kind.PATH, default=None, help="PEM file of that certificate's key."
    ),
    Setting(
        key="tokens",
        kind=Kind.PATH,
        default=None,
        help="The file of the API's tokens, from elasticps token.",
    ),
    Setting(
        key="allow_plain_all_reduce",
        kind=Kind.SWITCH,
        default=False,
        help="Let all-reduce's sums cross the network, which are not encrypted.",
    ),
    Setting(
        key="labels",
        kind=Kind.LABELS,
        flag="--label",
        metavar="KEY=VALUE",
        reload=True,
        help="What placement may know about this machine; as a flag, repeat it.",
    ),
    Setting(
        key="zone",
        kind=Kind.TEXT,
        default_text="the label zone",
        reload=True,
        help="What fails together with this machine: copies of a block avoid it.",
    ),
    Setting(
        key="weight",
        kind=Kind.NUMBER,
        reload=True,
        help="This node's share of the blocks, beside others' 1.0.",
    ),
    Setting(
        key="workers",
        kind=Kind.WHOLE,
        field="worker_slots",
        reload=True,
        help="How many workers of a job may run here.",
    ),
    Setting(
        key="threads_per_worker",
        kind=Kind.WHOLE,
        default_text="half of the cores",
        reload=True,
        help="OMP_NUM_THREADS of workers that start from now on.",
    ),
    Setting(
        key="shard_servers",
        kind=Kind.WHOLE_OR_AUTO,
        help="Shard servers of this node; auto: one for each NUMA node and for each 8 cores.",
    ),
    Setting(
        key="threads_per_server",
        kind=Kind.WHOLE,
        default_text="the cores over shard_servers, at most 4",
        help="Threads that a shard server computes with; they sleep until there is a round.",
    ),
    Setting(
        key="worker_units",
        kind=Kind.SWITCH,
        default_text="true under systemd",
        help="Run workers as units with users of their own, elasticps-worker@.service.",
    ),
    Setting(
        key="shared_memory",
        kind=Kind.SWITCH,
        reload=True,
        help="Let workers that start from now on share memory with this machine's shard server.",
    ),
    Setting(
        key="lease_ttl",
        kind=Kind.WHOLE,
        field="lease_ttl_s",
        help="Whole seconds of silence before the node counts as dead.",
    ),
    Setting(
        key="drain_timeout",
        kind=Kind.NUMBER,
        field="drain_timeout_s",
        reload=True,
        help="Seconds to hand over blocks at a stop; below the unit's TimeoutStopSec.",
    ),
    Setting(
        key="lost_after",
        kind=Kind.NUMBER,
        field="lost_after_s",
        help="Seconds that a job waits for lost blocks to come back, while this node leads.",
    ),
    Setting(
        key="kept_jobs",
        kind=Kind.WHOLE,
        reload=True,
        help="How many ended jobs are remembered, the newest, while this node leads; any one for a "
        "minute.",
    ),
    Setting(
        key="state_dir",
        kind=Kind.PATH,
        default_text="/var/lib/elasticps for root and under systemd",
        help="The folder of what must outlive the daemon.",
    ),
    Setting(
        key="log_dir",
        kind=Kind.PATH,
        default_text="/var/log/elasticps for root and under systemd",
        help="The folder of the children's logs.",
    ),
    Setting(
        key="runtime_dir",
        kind=Kind.PATH,
        default_text="/run/elasticps for root and under systemd",
        help="The folder of sockets.",
    ),
    Setting(
        key="log_level",
        kind=Kind.TEXT,
        reload=True,
        help="What the daemon's own log leaves out: debug, info, warning or error.",
    ),
)

BY_KEY: Mapping[str, Setting] = {setting.key: setting for setting in SETTINGS}


def default_of(setting: Setting) -> object:
    """The value where nothing else is given, as of this machine and user."""
    if setting.default is not UNSET:
        return setting.default
    field = next(each for each in fields(DaemonConfig) if each.name == setting.field_name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def from_text(setting: Setting, text: str) -> object:
    """The value that a flag or a variable spells. Raises UsageError, naming field and limit."""
    key = setting.key
    match setting.kind:
        case Kind.LISTEN:
            return parse_listen(text, key)
        case Kind.TEXTS:
            return split(text)
        case Kind.LABELS:
            return parse_labels(split(text))
        case Kind.PATH:
            return Path(text).absolute()
        case Kind.WHOLE | Kind.WHOLE_OR_AUTO | Kind.NUMBER:
            return _number(setting, text)
        case Kind.SWITCH:
            spoken = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            if text.lower() not in spoken:
                raise _wrong(setting, text)
            return spoken[text.lower()]
        case Kind.TEXT:
            return text


def _number(setting: Setting, text: str) -> int | float:
    if setting.kind is Kind.WHOLE_OR_AUTO and text == AUTO:
        return servers_for(numa_nodes())
    try:
        return float(text) if setting.kind is Kind.NUMBER else int(text)
    except ValueError:
        raise _wrong(setting, text) from None


def from_toml(setting: Setting, value: object) -> object:
    """The value that the file holds. Raises UsageError where it is of another kind."""
    match setting.kind, value:
        case (Kind.TEXT, str()) | (Kind.SWITCH, bool()):
            return value
        case (Kind.WHOLE_OR_AUTO, str(text)) if text == AUTO:
            return servers_for(numa_nodes())
        case (Kind.WHOLE | Kind.WHOLE_OR_AUTO | Kind.NUMBER, bool()):
            raise _wrong(setting, value)
        case (Kind.WHOLE | Kind.WHOLE_OR_AUTO, int()) | (Kind.NUMBER, int() | float()):
            return value
        case (Kind.LISTEN, str()):
            return parse_listen(value, setting.key)
        case (Kind.PATH, str()) if Path(value).is_absolute():
            return Path(value)
        case (Kind.TEXTS, list()) if all(isinstance(item, str) for item in value):
            return tuple(value)
        case (Kind.LABELS, dict()) if all(isinstance(item, str) for item in value.values()):
            return dict(value)
    raise _wrong(setting, value)


def to_text(setting: Setting, value: object) -> str:
    """The value as a flag would spell it; empty for one that is not set."""
    match value:
        case None:
            return ""
        case (str(host), int(port)) if setting.kind is Kind.LISTEN:
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case tuple():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{key}={item}" for key, item in value.items())
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return str(value)


def split(*lists: str) -> tuple[str, ...]:
    """The items of comma lists."""
    return tuple(item.strip() for text in lists for item in text.split(",") if item.strip())


def _wrong(setting: Setting, value: object) -> UsageError:
    return UsageError(
        f"{str(value)[:80]!r} is not {setting.kind.value}",
        field=setting.key,
        limit=setting.kind.value,
    )
