"""TLS as elasticps uses it: version 1.3, the cluster's own authority, and nobody else's.

A node proves itself by its certificate, at both ends of a connection. Who comes without one is let
in as far as the handshake, and must then show a token; who comes with another authority's is not.
"""

from __future__ import annotations

import datetime
import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from elasticps.core.ids import NodeId
from elasticps.errors import UsageError
from elasticps.security.files import Reloaded, read_file, read_secret

log = logging.getLogger(__name__)

SOON = datetime.timedelta(days=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the authorities that are trusted, a node's certificate, and its key."""

    ca: Path
    cert: Path
    key: Path

    def check(self, node: str) -> None:
        """Raises UsageError, naming the file, for what cannot prove that this is ``node``."""
        read_secret(self.key, "tls_key")
        authorities = certificates_in(self.ca, "tls_ca")
        certificate = certificates_in(self.cert, "tls_cert")[0]
        now = datetime.datetime.now(datetime.UTC)
        left = certificate.not_valid_after_utc - now
        if left < datetime.timedelta(0) or certificate.not_valid_before_utc > now:
            self._refuse(f"valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        if left < SOON:
            log.warning("%s is valid for %d days only", self.cert, left.days)
        _check_host(node)
        names = hosts_of(certificate)
        if common_name(certificate) != node or node not in names:
            self._refuse(f"the certificate is not one of node {node}", limit=", ".join(names))
        if not any(signed_by(certificate, each) for each in authorities):
            self._refuse(f"not signed by a certificate in {self.ca}")
        _loaded(ssl.PROTOCOL_TLS_SERVER, self)

    def _refuse(self, what: str, limit: str | None = None) -> None:
        raise UsageError(
            what,
            where=str(self.cert),
            field="tls_cert",
            limit=limit,
            hint="elasticps certs issue makes one",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """How to connect: by ``context``, to whoever proves to be ``name``."""

    context: ssl.SSLContext
    name: str


class NodeTls:
    """A node's ends of TLS connections; certificates that change are taken up as they do.

    Connections that are open stay open.
    """

    def __init__(self, files: TlsFiles) -> None:
        paths = (files.ca, files.cert, files.key)
        self.files = files
        self._server = Reloaded(paths, lambda: _loaded(ssl.PROTOCOL_TLS_SERVER, files))
        self._client = Reloaded(paths, lambda: _loaded(ssl.PROTOCOL_TLS_CLIENT, files))

    def server(self) -> ssl.SSLContext:
        """For listeners: each handshake takes the certificate of its own time."""
        context = _loaded(ssl.PROTOCOL_TLS_SERVER, self.files)

        def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._server.now

        context.sni_callback = renew
        return context

    def to_node(self, node: NodeId) -> Secured:
        """To connect to the listener of ``node``, as this node."""
        return Secured(context=self._client.now, name=node)


def trusting(ca_pem: bytes) -> ssl.SSLContext:
    """For who has no certificate of its own, and trusts those that ``ca_pem`` has signed."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    return context


def showing(cert_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """For a listener whose certificate and key are in memory alone."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # The one way to give OpenSSL a key by Python is a file: this one has no name and no disk.
    number = os.memfd_create("elasticps-key", os.MFD_CLOEXEC)
    with os.fdopen(number, "wb") as file:
        file.write(key_pem + cert_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{number}")
    return context


def node_of(peer: Mapping[str, Any] | None) -> NodeId | None:
    """Whose certificate a verified peer has shown (``SSLObject.getpeercert``); None without one."""
    for part in (peer or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return NodeId(value)
    return None


def _check_host(node: str) -> None:
    """What a node may be called, and a host in a certificate may not: "a..b", say."""
    try:
        node.encode("idna")
    except UnicodeError as error:
        raise UsageError(
            f"{node!r} cannot be in a certificate: {error}", field="node", limit="a host name"
        ) from None


def common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` has signed it itself, with no other in between."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # the kind of key decides what is raised, InvalidSignature or another
        return False
    return True


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.DNSName) + [
        str(address) for address in found.value.get_values_for_type(x509.IPAddress)
    ]


def certificates_in(path: Path, field: str) -> list[x509.Certificate]:
    """Those of a PEM file that the configuration names. Raises UsageError."""
    try:
        return x509.load_pem_x509_certificates(read_file(path, field))
    except ValueError as error:
        raise UsageError(f"no certificate: {error}", where=str(path), field=field) from None


def _context(kind: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _loaded(kind: ssl._SSLMethod, files: TlsFiles) -> ssl.SSLContext:
    context = _context(kind)
    if kind is ssl.PROTOCOL_TLS_SERVER:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0  # a session that is resumed would outlive its certificate
    try:
        context.load_verify_locations(cafile=files.ca)
        # Of an encrypted key OpenSSL would ask the terminal.
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"certificate and key cannot be used together: {error}",
            where=str(files.key),
            field="tls_key",
            limit="the PEM key of the certificate, without a password",
        ) from None
    return context


def _no_password() -> str:
    raise UsageError("a key with a password", field="tls_key", limit="a key without one")
