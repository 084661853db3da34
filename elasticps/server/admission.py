"""Who a connection to a shard server may be, and what for: decided once, at its hello."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from elasticps.core.ids import JobKey, NodeId, ServerId, node_of
from elasticps.errors import AccessDenied
from elasticps.security.files import Reloaded, read_file
from elasticps.security.passes import PassIssuer, PassVerifier
from elasticps.security.tls import NodeTls, Secured, TlsFiles
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind
from elasticps.wire.messages import HelloMeta

_SERVER_KINDS = frozenset({Kind.SNAPSHOT, Kind.OP, Kind.OPS, Kind.PROOF, Kind.LEND, Kind.PROBE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What a caller may do here: as a worker that of its ``job``, as a server replicate.

    Where nothing is proven (``is_known`` False) it is taken at its word.
    """

    is_known: bool
    job: JobKey = JobKey(0)

    def check(self, header: Header) -> None:
        """Raises AccessDenied for what the caller may not ask."""
        if not self.is_known:
            return
        if not self.job and header.kind not in _SERVER_KINDS:
            raise AccessDenied(f"a server asks for {header.kind.name}", field="kind")
        if self.job and header.kind in _SERVER_KINDS:
            raise AccessDenied(f"a worker sends {header.kind.name}", field="kind")
        if self.job and header.job != self.job:
            raise AccessDenied(
                f"a request for job {header.job}", field="job", limit=f"the pass is for {self.job}"
            )


class Admission(Protocol):
    def admit(self, conn: Connection, hello: HelloMeta) -> Admitted:
        """Raises AccessDenied for who has not proven to be the hello's caller."""
        ...


class Open:
    """Without certificates: whoever reaches this server is who it says."""

    def admit(self, conn: Connection, hello: HelloMeta) -> Admitted:
        return Admitted(is_known=False)


class Proven:
    """By its pass; and a server that comes over the network by its certificate too."""

    def __init__(self, files: TlsFiles) -> None:
        self._verifier = Reloaded((files.ca,), lambda: PassVerifier(read_file(files.ca, "tls_ca")))

    def admit(self, conn: Connection, hello: HelloMeta) -> Admitted:
        shown = self._verifier.now.check(hello.token, cluster=hello.cluster, caller=hello.caller)
        certified = conn.peer_node()
        if shown.job:
            return Admitted(is_known=True, job=shown.job)
        if node_of(ServerId(shown.caller)) != shown.node:
            raise AccessDenied(f"node {shown.node} says so", where=shown.caller, field="token")
        if conn.where.transport == "tcp" and certified != shown.node:
            raise AccessDenied(
                f"the certificate is of {certified or 'nobody'}",
                where=shown.caller,
                field="certificate",
                limit=shown.node,
            )
        return Admitted(is_known=True)


class ServerCredentials:
    """How this shard server proves itself to others (``wire.pool.Credentials``)."""

    def __init__(self, tls: NodeTls, cluster: str, me: ServerId) -> None:
        self._tls = tls
        self._me = me
        self._issuer = PassIssuer(tls.files, cluster, NodeId(node_of(me)))

    def token(self) -> bytes:
        return self._issuer.issue(self._me)

    def secured(self, name: ServerId) -> Secured:
        return self._tls.to_node(node_of(name))
