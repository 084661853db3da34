"""A cluster's own certificate authority: its key, and the certificates of nodes that it signs.

The key of the authority is needed to issue, and for nothing else: it belongs on no node.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from elasticps.errors import UsageError
from elasticps.security.files import read_file, read_secret, write_new

CA_NAME, CA_KEY_NAME = "ca.pem", "ca-key.pem"
MAX_DAYS = 36_500
BACKDATED = datetime.timedelta(hours=1)
"""Clocks of two machines differ."""
PUBLIC = 0o644

_NODE = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate's and its key's file, both PEM."""

    cert: Path
    key: Path


def make_authority(directory: Path, cluster: str, *, days: int) -> Issued:
    """Make the cluster's authority in ``directory``. Raises UsageError where there is one."""
    made = Issued(cert=directory / CA_NAME, key=directory / CA_KEY_NAME)
    for path in (made.cert, made.key):
        _refuse_existing(path)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named(f"elasticps {cluster[:50]}")
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_new(made.key, _key_pem(key))
    write_new(made.cert, certificate.public_bytes(serialization.Encoding.PEM), PUBLIC)
    return made


def check_node(node: str, hosts: Iterable[str]) -> None:
    """Raises UsageError for names that no certificate can have."""
    if not _NODE.fullmatch(node):
        raise UsageError(f"{node[:80]!r} is no node", field="node", limit=_NODE.pattern)
    try:
        node.encode("idna")
    except UnicodeError as error:
        raise UsageError(f"{node!r} is no host name: {error}", field="node") from None
    if f"{node}.pem" == CA_NAME or f"{node}.pem" == CA_KEY_NAME:
        raise UsageError("the name is the authority's own", field="node", hint="another name")
    for host in hosts:
        _alternative(host)


def issue(directory: Path, node: str, hosts: Iterable[str], *, days: int) -> Issued:
    """Make a key for ``node`` and a certificate that says so, signed by ``directory``'s authority.

    ``hosts`` are the addresses and names by which the node's API is reached. Raises UsageError for
    names that no certificate can have, and where the files exist.
    """
    hosts = tuple(hosts)
    check_node(node, hosts)
    made = Issued(cert=directory / f"{node}.pem", key=directory / f"{node}-key.pem")
    for path in (made.cert, made.key):
        _refuse_existing(path)
    ca_key = _signing_key(directory / CA_KEY_NAME)
    ca = _certificate(directory / CA_NAME)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_alternative(host) for host in dict.fromkeys((node, *hosts))]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    signer = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_named(node), ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    write_new(made.key, _key_pem(key))
    write_new(made.cert, certificate.public_bytes(serialization.Encoding.PEM), PUBLIC)
    return made


def self_signed(name: str, *, days: int) -> tuple[bytes, bytes]:
    """A certificate for ``name`` that nobody vouches for, and its key, both PEM, in memory alone.

    Who knows the certificate itself knows whom it speaks to.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_named(name), _named(name), key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"{days} days", field="days", limit=f"1 to {MAX_DAYS}")
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise UsageError(
            f"{host[:80]!r} is neither a name nor an address", field="host", limit=_HOST.pattern
        )
    return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_secret(path, "dir"), password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"not a key: {error}", where=str(path), field="dir") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError("not a key of elasticps certs init", where=str(path), field="dir")
    return key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(path, "dir"))
    except ValueError as error:
        raise UsageError(f"not a certificate: {error}", where=str(path), field="dir") from None


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(
            "the file exists, and is not overwritten", where=str(path), hint="move it away first"
        )
