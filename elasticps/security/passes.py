"""Passes: what a node says, over its signature, of a process that runs on it.

A worker has no certificate, for it runs a user's code. Its node gives it a pass for its job alone,
which holds for minutes and is renewed while the worker lives. Whoever knows the cluster's authority
can check it, and nobody has to keep it secret but its holder: nothing of it is in etcd.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from elasticps.core.ids import JobKey, NodeId
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import AccessDenied, UsageError
from elasticps.security.files import Reloaded, read_file, read_secret
from elasticps.security.tls import TlsFiles, common_name, signed_by

VALID_S = 900.0
RENEWED_AFTER_S = 300.0
CONTEXT = b"elasticps pass 1\0"
"""What a signature is of, so that it is of nothing else that the key signs."""
MAX_BYTES = 8192


class Pass(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """``caller``, a worker or a shard server, runs on ``node``. ``job`` 0: a server, of no job."""

    cluster: str
    node: NodeId
    caller: str
    job: JobKey = JobKey(0)
    expires_unix: float = 0.0


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    statement: bytes
    certificate: bytes
    signature: bytes


class PassIssuer:
    """Signs with a node's key, the one of its certificate."""

    def __init__(self, files: TlsFiles, cluster: str, node: NodeId) -> None:
        self._cluster = cluster
        self._node = node
        self._keys = Reloaded((files.cert, files.key), lambda: _key_and_certificate(files))

    def issue(self, caller: str, job: JobKey = JobKey(0)) -> bytes:
        key, certificate = self._keys.now
        statement = msgspec.msgpack.encode(
            Pass(
                cluster=self._cluster,
                node=self._node,
                caller=caller,
                job=job,
                expires_unix=time.time() + VALID_S,
            )
        )
        signature = _signature(key, CONTEXT + statement)
        return msgspec.msgpack.encode(_Signed(statement, certificate, signature))


class PassVerifier:
    """Checks passes by the authorities that are trusted."""

    def __init__(self, ca_pem: bytes) -> None:
        self._authorities = x509.load_pem_x509_certificates(ca_pem)

    def check(self, token: bytes, *, cluster: str, caller: str) -> Pass:
        """The pass of ``caller``. Raises AccessDenied for anything else."""
        if not token:
            raise AccessDenied(f"{caller[:80]!r} shows no pass", field="token")
        try:
            signed = msgspec.msgpack.decode(token[:MAX_BYTES], type=_Signed)
            stated = msgspec.msgpack.decode(signed.statement, type=Pass)
            certificate = x509.load_der_x509_certificate(signed.certificate)
            self._check_signer(certificate, stated.node)
            _verify(certificate.public_key(), signed.signature, CONTEXT + signed.statement)
        except (*UNDECODABLE, ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise AccessDenied(
                f"not a pass: {error or 'the signature is wrong'}", field="token"
            ) from None
        if (stated.cluster, stated.caller) != (cluster, caller):
            raise AccessDenied(
                f"the pass of {stated.caller} in cluster {stated.cluster}",
                where=caller[:80],
                field="token",
            )
        if not time.time() < stated.expires_unix:
            raise AccessDenied("the pass is over", where=caller, field="token")
        return stated

    def _check_signer(self, certificate: x509.Certificate, node: NodeId) -> None:
        now = datetime.datetime.now(datetime.UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise AccessDenied("signed with an expired certificate", where=node, field="token")
        if common_name(certificate) != node:
            raise AccessDenied(
                f"signed by {common_name(certificate)}", where=node, field="token", limit=node
            )
        if not any(signed_by(certificate, each) for each in self._authorities):
            raise AccessDenied("signed by a stranger to this cluster", where=node, field="token")


def _key_and_certificate(files: TlsFiles) -> tuple[Any, bytes]:
    content = read_file(files.cert, "tls_cert")
    try:
        certificate = x509.load_pem_x509_certificate(content)
        key = serialization.load_pem_private_key(read_secret(files.key, "tls_key"), password=None)
        _signature(key, b"")
    except (ValueError, TypeError) as error:
        raise UsageError(f"not usable: {error}", where=str(files.key), field="tls_key") from None
    if certificate.public_key() != key.public_key():
        raise UsageError("not the certificate's key", where=str(files.key), field="tls_key")
    return key, certificate.public_bytes(serialization.Encoding.DER)


def _signature(key: object, message: bytes) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(message, ec.ECDSA(hashes.SHA256()))
        case ed25519.Ed25519PrivateKey():
            return key.sign(message)
        case rsa.RSAPrivateKey():
            return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    raise ValueError("a key that is neither ECDSA, Ed25519 nor RSA")


def _verify(key: object, signature: bytes, message: bytes) -> None:
    """Raises InvalidSignature, or ValueError for a kind of key that signs no passes."""
    match key:
        case ec.EllipticCurvePublicKey():
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        case ed25519.Ed25519PublicKey():
            key.verify(signature, message)
        case rsa.RSAPublicKey():
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        case _:
            raise ValueError("a key that is neither ECDSA, Ed25519 nor RSA")
