"""``elasticps certs``: the cluster's own authority, and certificates for its nodes."""

from __future__ import annotations

from pathlib import Path

import click

from elasticps.errors import UsageError

CA_DAYS, NODE_DAYS = 3650, 365

_folder = click.Path(file_okay=False, path_type=Path)


@click.group()
def certs() -> None:
    """Make the certificates that daemons prove themselves by.

    The authority's key, ca-key.pem, is needed to issue and for nothing else: it belongs on no node.

    \b
    Example:
      elasticps certs init certs --node a=10.0.0.7 --node b=10.0.0.8
      elasticps certs issue certs c --host 10.0.0.9
    """


@certs.command()
@click.argument("directory", type=_folder)
@click.option("--cluster", default="default", show_default=True, help="Named in the certificate.")
@click.option("--days", default=CA_DAYS, show_default=True, help="How long the authority is good.")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME=HOST,...",
    help="Issue a certificate for this node too; repeat it.",
)
def init(directory: Path, cluster: str, days: int, nodes: tuple[str, ...]) -> None:
    """Make an authority in DIRECTORY: ca.pem, which every node has, and ca-key.pem, which none has.

    What exists is not overwritten.

    \b
    Example:
      elasticps certs init certs --node a=10.0.0.7,a.lan --node b=10.0.0.8
    """
    from elasticps.security.authority import check_node, make_authority

    wanted = [_parsed(node) for node in nodes]
    for name, hosts in wanted:
        check_node(name, hosts)
    made = make_authority(directory, cluster, days=days)
    click.echo(f"{made.cert}  the authority: for every node, and for `elasticps --ca`")
    click.echo(f"{made.key}  its key: to issue with, on no node")
    for name, hosts in wanted:
        _issue(directory, name, hosts, min(days, NODE_DAYS))


@certs.command()
@click.argument("directory", type=_folder)
@click.argument("node")
@click.option("--host", "hosts", multiple=True, help="An address or name of the node; repeat it.")
@click.option("--days", default=NODE_DAYS, show_default=True, help="How long it is good.")
def issue(directory: Path, node: str, hosts: tuple[str, ...], days: int) -> None:
    """Issue a certificate for NODE, the name of a daemon, by the authority in DIRECTORY.

    Without --host the API can be asked by the node's name alone. A daemon takes up files that are
    replaced without a restart.

    \b
    Example:
      elasticps certs issue certs machine-c --host 10.0.0.9 --host machine-c.lan
    """
    _issue(directory, node, hosts, days)


def _issue(directory: Path, node: str, hosts: tuple[str, ...], days: int) -> None:
    from elasticps.security.authority import issue as issued

    made = issued(directory, node, hosts, days=days)
    click.echo(f"{made.cert}  node {node}, for {days} days")
    click.echo(f"{made.key}  its key: on that node alone, mode 0600")


def _parsed(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, hosts = text.partition("=")
    if not name or not equals or not hosts:
        raise UsageError(f"{text[:80]!r} is no node", field="node", limit="NAME=HOST,...")
    return name, tuple(host.strip() for host in hosts.split(",") if host.strip())
