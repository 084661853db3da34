"""Do the certificates prove that this is the node, to whom they must, and for how long yet?"""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509

from elasticps.doctor.etcd_http import expiry
from elasticps.doctor.finding import Finding, fault, ok, unchecked, warning
from elasticps.doctor.setup import Setup
from elasticps.errors import UsageError
from elasticps.security.tls import certificates_in, common_name, hosts_of, signed_by

AUTHORITY = "put a new authority's certificate beside it in ca.pem on all nodes (docs/security.md)"


async def certificates(setup: Setup) -> list[Finding]:
    """The node's own and its authority; those of etcd are seen where etcd is asked."""
    cert, ca = setup.path("tls.cert"), setup.path("tls.ca")
    if cert is None or ca is None:
        return [unchecked("none is named: only loopback goes without", fix="docs/security.md")]
    try:
        own = certificates_in(cert, "tls.cert")[0]
        authorities = certificates_in(ca, "tls.ca")
    except UsageError:
        return [unchecked("a file cannot be read", fix="see the check files")]
    node, (host, _) = setup.node, setup.listens("http")
    renew = f"`elasticps certs issue DIR {node} --host {host}` where the authority's key is"
    return [
        *(_lasting(f"the authority {common_name(each)}", each, AUTHORITY) for each in authorities),
        _lasting(f"the certificate {cert.name}", own, renew),
        _names(own, node, host, renew),
        _chain(own, authorities, ca, renew),
    ]


def _lasting(what: str, certificate: x509.Certificate, fix: str) -> Finding:
    until, now = certificate.not_valid_after_utc, datetime.datetime.now(datetime.UTC)
    if until < now:
        return fault(f"{what} ended {(now - until).days} days ago, {until:%Y-%m-%d %H:%M}", fix=fix)
    if certificate.not_valid_before_utc > now:
        begins = certificate.not_valid_before_utc
        return fault(f"{what} begins {begins:%Y-%m-%d %H:%M}", fix=f"is the clock right? {fix}")
    return expiry(what, until, fix)


def _names(certificate: x509.Certificate, node: str, host: str, fix: str) -> Finding:
    name, hosts = common_name(certificate), hosts_of(certificate)
    if name != node or node not in hosts:
        saw = f"the certificate is of node {name}, this is node {node}"
        return fault(saw, fix=f"the file of {node}, or another node's name; {fix}")
    if host not in hosts:
        saw = f"the certificate does not name {host}: users of the API there will not trust it"
        return warning(saw, fix=fix)
    return ok(f"it names {', '.join(hosts)}")


def _chain(
    certificate: x509.Certificate, authorities: list[x509.Certificate], ca: Path, fix: str
) -> Finding:
    signers = [each for each in authorities if signed_by(certificate, each)]
    if not signers:
        return fault(f"no certificate in {ca} has signed it", fix=f"the cluster's ca.pem, or {fix}")
    return ok(f"signed by {common_name(signers[0])}")
