"""``elasticps certs``: the cluster's own authority, and certificates for its nodes."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from elasticps.cli.options import json_option
from elasticps.cli.output import print_json
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
@json_option
def init(directory: Path, cluster: str, days: int, nodes: tuple[str, ...], as_json: bool) -> None:
    """Make an authority in DIRECTORY: ca.pem, which every node has, and ca-key.pem, which none has.

    What exists is not overwritten.

    \b
    Example:
      elasticps certs init certs --node a=10.0.0.7,a.lan --node b=10.0.0.8

    \b
    Exit codes:
      0    written
      1    a file cannot be written
      2    something there would be overwritten, or a name is none
    """
    from elasticps.security.authority import check_node, make_authority

    wanted = [_parsed(node) for node in nodes]
    for name, hosts in wanted:
        check_node(name, hosts)
    made = make_authority(directory, cluster, days=days)
    files = [
        MadeFile(str(made.cert), "the authority: for every node, and for `elasticps --ca`"),
        MadeFile(str(made.key), "its key: to issue with, on no node"),
    ]
    for name, hosts in wanted:
        files += _issue(directory, name, hosts, min(days, NODE_DAYS))
    _tell(files, as_json=as_json)


@certs.command()
@click.argument("directory", type=_folder)
@click.argument("node")
@click.option("--host", "hosts", multiple=True, help="An address or name of the node; repeat it.")
@click.option("--days", default=NODE_DAYS, show_default=True, help="How long it is good.")
@json_option
def issue(directory: Path, node: str, hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    """Issue a certificate for NODE, the name of a daemon, by the authority in DIRECTORY.

    Without --host the API can be asked by the node's name alone. A daemon takes up files that are
    replaced without a restart.

    \b
    Example:
      elasticps certs issue certs machine-c --host 10.0.0.9 --host machine-c.lan

    \b
    Exit codes:
      0    written
      1    a file cannot be written
      2    no authority is there, or a name is none
    """
    _tell(_issue(directory, node, hosts, days), as_json=as_json)


class MadeFile(msgspec.Struct, frozen=True):
    """A file that was written, and what it is for."""

    path: str
    purpose: str


def _tell(files: list[MadeFile], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": files})
        return
    for file in files:
        click.echo(f"{file.path}  {file.purpose}")


def _issue(directory: Path, node: str, hosts: tuple[str, ...], days: int) -> list[MadeFile]:
    from elasticps.security.authority import issue as issued

    made = issued(directory, node, hosts, days=days)
    return [
        MadeFile(str(made.cert), f"node {node}, for {days} days"),
        MadeFile(str(made.key), "its key: on that node alone, mode 0600"),
    ]


def _parsed(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, hosts = text.partition("=")
    if not name or not equals or not hosts:
        raise UsageError(f"{text[:80]!r} is no node", field="node", limit="NAME=HOST,...")
    return name, tuple(host.strip() for host in hosts.split(",") if host.strip())
