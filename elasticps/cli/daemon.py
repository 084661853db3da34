"""``elasticps daemon``: options and variables in, a checked ``DaemonConfig`` out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elasticps.cli.options import Command
from elasticps.errors import UsageError

if TYPE_CHECKING:  # the daemon's modules load when a daemon is to run
    from elasticps.daemon.config import DaemonConfig, Security
    from elasticps.store.config import StoreConfig

DEFAULT_ETCD = "127.0.0.1:2379"


def _option(flag: str, help_text: str, **attributes: Any) -> Callable[[Command], Command]:
    """An option that can be set by ELASTICPS_<FLAG> too."""
    variable = "ELASTICPS_" + flag.removeprefix("--").upper().replace("-", "_")
    attributes = {"envvar": variable, "show_envvar": True, **attributes}
    return click.option(flag, help=help_text, **attributes)


@click.command()
@_option("--node", "This machine's stable name.  [default: the host name]")
@_option("--cluster", "The cluster to join or begin.", default="default", show_default=True)
@_option(
    "--etcd",
    "etcd's endpoints, separated by commas.",
    metavar="HOST:PORT,...",
    default=DEFAULT_ETCD,
    show_default=True,
)
@_option("--etcd-ca", "PEM file of the authority that signed etcd's certificates.", type=Path)
@_option("--etcd-cert", "PEM file of this daemon's certificate for etcd.", type=Path)
@_option("--etcd-key", "PEM file of that certificate's key.", type=Path)
@_option("--etcd-user", "A user of etcd.")
@_option("--etcd-password-file", "The file that holds the user's password.", type=Path)
@_option("--http", "Where the API listens.  [default: 127.0.0.1:7400]", metavar="HOST:PORT")
@_option("--data", "Where the data plane listens.  [default: 127.0.0.1:0]", metavar="HOST:PORT")
@_option(
    "--label",
    "What placement may know about this machine; repeat it.",
    multiple=True,
    metavar="KEY=VALUE",
    envvar="ELASTICPS_LABELS",
)
@_option("--zone", "What fails together with this machine.  [default: the label zone]")
@_option("--weight", "This node's share of the blocks, beside others' 1.0.", type=float)
@_option("--workers", "How many workers of a job may run here.  [default: 1]", type=int)
@_option(
    "--lease-ttl", "Seconds of silence before the node counts as dead.  [default: 5]", type=int
)
@_option("--drain-timeout", "Seconds to hand over blocks at a stop.  [default: 30]", type=float)
@_option("--state-dir", "The folder of what must outlive the daemon.", type=Path)
@_option("--log-dir", "The folder of the children's logs.", type=Path)
@_option("--runtime-dir", "The folder of sockets.", type=Path)
@_option("--tls-ca", "PEM file of the cluster's authority; see `elasticps certs`.", type=Path)
@_option("--tls-cert", "PEM file of this node's certificate.", type=Path)
@_option("--tls-key", "PEM file of that certificate's key.", type=Path)
@_option("--tokens", "The file of the API's tokens; see `elasticps token`.", type=Path)
@_option(
    "--allow-plain-all-reduce",
    "Let all-reduce's sums cross the network, which are not encrypted.",
    is_flag=True,
)
@_option(
    "--allow-insecure-network",
    "Bind off loopback without TLS and tokens: trusted networks only.",
    is_flag=True,
)
def daemon(**options: Any) -> None:
    """Run this machine's daemon in the foreground, as its systemd unit does.

    Every option has a variable; see systemd/elasticpsd.env.example. The folders lie under
    /var/lib, /var/log and /run for root, else under XDG_STATE_HOME and XDG_RUNTIME_DIR.

    Exit code 3: etcd has lost what it had acknowledged, as after the restore of a backup. Stop all
    daemons, then start them again.

    \b
    Example:
      elasticps daemon --etcd 10.0.0.5:2379,10.0.0.6:2379 --cluster lab
      ELASTICPS_LABELS=zone=a,rack=12 elasticps daemon --workers 2
    """
    config = config_from(**options)
    from elasticps.daemon.main import run

    raise click.exceptions.Exit(run(config))


def config_from(
    *,
    etcd: str,
    etcd_ca: Path | None,
    etcd_cert: Path | None,
    etcd_key: Path | None,
    etcd_user: str | None,
    etcd_password_file: Path | None,
    http: str | None,
    data: str | None,
    label: tuple[str, ...],
    zone: str | None,
    workers: int | None,
    lease_ttl: int | None,
    drain_timeout: float | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tokens: Path | None,
    allow_plain_all_reduce: bool,
    **plain: Any,
) -> DaemonConfig:
    """The configuration that the options spell. Raises UsageError, naming field and limit."""
    from elasticps.daemon.config import DaemonConfig, parse_labels, parse_listen

    labels = parse_labels(split(*label))
    given: dict[str, Any] = {
        "http": http and parse_listen(http, "http"),
        "data": data and parse_listen(data, "data"),
        "zone": zone or labels.get("zone"),
        "worker_slots": workers,
        "lease_ttl_s": lease_ttl,
        "drain_timeout_s": drain_timeout,
        "security": _security(tls_ca, tls_cert, tls_key, tokens, allow_plain_all_reduce),
    }
    folders = ("state_dir", "log_dir", "runtime_dir")
    given |= {
        name: value.absolute() if name in folders and value else value
        for name, value in plain.items()
    }
    store = _store(etcd, etcd_ca, etcd_cert, etcd_key, etcd_user, etcd_password_file)
    chosen = {name: value for name, value in given.items() if value is not None}
    return DaemonConfig(etcd=store, labels=labels, **chosen)


def split(*lists: str) -> tuple[str, ...]:
    """The items of comma lists."""
    return tuple(item.strip() for text in lists for item in text.split(",") if item.strip())


def _security(
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    tokens: Path | None,
    plain_all_reduce: bool,
) -> Security | None:
    """All of it or nothing: half of it would be taken for the whole."""
    from elasticps.daemon.config import Security
    from elasticps.security.tls import TlsFiles

    files = {"tls_ca": ca, "tls_cert": cert, "tls_key": key, "tokens": tokens}
    missing = [name for name, path in files.items() if path is None]
    if len(missing) == len(files):
        return None
    if missing or ca is None or cert is None or key is None or tokens is None:
        raise UsageError(
            "TLS and tokens go together",
            field=missing[0],
            hint="give --tls-ca, --tls-cert, --tls-key and --tokens",
        )
    tls = TlsFiles(ca=ca.absolute(), cert=cert.absolute(), key=key.absolute())
    return Security(tls=tls, tokens=tokens.absolute(), plain_all_reduce=plain_all_reduce)


def _store(
    etcd: str,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    user: str | None,
    password_file: Path | None,
) -> StoreConfig:
    from elasticps.security.files import read_word
    from elasticps.store.config import StoreConfig

    return StoreConfig(
        endpoints=split(etcd),
        ca=ca,
        cert=cert,
        key=key,
        username=user,
        password=read_word(password_file, "etcd_password_file") if password_file else None,
    )
