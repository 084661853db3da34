"""What a node with certificates proves itself by, and gives its workers to prove themselves by."""

from __future__ import annotations

import os
from typing import Any

import aiohttp

from elasticps.core.ids import JobKey, NodeId, WorkerId
from elasticps.core.records import NodeRecord
from elasticps.daemon.config import DaemonConfig, Security
from elasticps.security.files import Reloaded, read_file
from elasticps.security.passes import PassIssuer
from elasticps.security.tls import NodeTls
from elasticps.security.tokens import TokenFile
from elasticps.wire.control_messages import Access
from elasticps.wire.peer_process import PeerProcess


class NodeAccess:
    """One node's certificate and key in use, and the tokens that its API takes."""

    def __init__(self, security: Security, cluster: str, node: NodeId) -> None:
        files = security.tls
        self.tls = NodeTls(files)
        self.tokens = TokenFile(security.tokens)
        self._plain_all_reduce = security.plain_all_reduce
        self._issuer = PassIssuer(files, cluster, node)
        self._ca = Reloaded((files.ca,), lambda: read_file(files.ca, "tls_ca"))

    @classmethod
    def of(cls, config: DaemonConfig) -> NodeAccess | None:
        """None where the configuration names no certificates."""
        if config.security is None:
            return None
        return cls(config.security, config.cluster, NodeId(config.node))

    def of_worker(self, worker: WorkerId, job: JobKey) -> Access:
        """What a worker of this node shows from now on, until it is given the next."""
        return Access(
            token=self._issuer.issue(str(worker), job),
            ca=self._ca.now,
            plain_all_reduce=self._plain_all_reduce,
        )


def connecting(access: NodeAccess | None, node: NodeId) -> dict[str, Any]:
    """Options of a connection to the API of ``node``, and to nobody else's."""
    if access is None:
        return {}
    secured = access.tls.to_node(node)
    return {"ssl": secured.context, "server_hostname": secured.name}


def asking(access: NodeAccess | None, record: NodeRecord) -> dict[str, Any]:
    """Options of an aiohttp request to that node's API. Raises InvalidURL for one without TLS."""
    if access is not None and not record.http.startswith("https://"):
        raise aiohttp.InvalidURL(record.http, "a node without TLS, in a cluster with it")
    return connecting(access, record.node)


def is_of_child(process: PeerProcess, child: int | None) -> bool:
    """Whether a process is a child of the daemon, or of the group that the child heads."""
    try:
        return child is not None and process.pid > 0 and os.getpgid(process.pid) == child
    except ProcessLookupError:
        return False


def is_of_unit(process: PeerProcess, main: PeerProcess | None) -> bool:
    """Whether a process is the main one of a worker's unit, or of the group that it heads.

    The user is asked for too: a number of a process that is gone may be another unit's by now, but
    a unit has its user for itself as long as it lives.
    """
    return main is not None and process.user == main.user and is_of_child(process, main.pid)
