"""Can others reach this machine at the addresses that its daemon will register?"""

from __future__ import annotations

import errno
import ipaddress
import socket

from elasticps.doctor.finding import Finding, fault, ok, warning
from elasticps.doctor.setup import Setup, told_by
from elasticps.store.config import StoreConfig


async def addresses(setup: Setup) -> list[Finding]:
    own = _own_address(setup)
    return [_address(setup, key, setup.listens(key)[0], own) for key in ("http", "data")]


def _address(setup: Setup, key: str, host: str, own: str) -> Finding:
    better = f"an address of this machine{f', {own},' if own else ''} in {told_by(key)}"
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return fault(f"{key} {host}: {error.strerror}", fix=f"{better}, or mend DNS or /etc/hosts")
    found = ipaddress.ip_address(str(where[0]).partition("%")[0])
    seen = f"{key} {host}" + (f" is {found}" if str(found) != host else "")
    if found.is_unspecified:
        fix = f"{better}: {host} is what the others are told too, and leads them back to themselves"
        return fault(seen, fix=fix) if setup.etcd_is_elsewhere else warning(seen, fix=fix)
    if found.is_loopback and setup.etcd_is_elsewhere:
        return fault(f"{seen}: loopback, while etcd is on another machine", fix=better)
    try:
        with socket.socket(family, kind, protocol) as sock:
            sock.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return fault(f"{seen}: no address of this machine", fix=f"`ip addr`; {better}")
        return fault(f"{seen}: {error.strerror}", fix=better)
    reach = "only this machine reaches it" if found.is_loopback else "an address of this machine"
    return ok(f"{seen}: {reach}")


def _own_address(setup: Setup) -> str:
    """The address that this machine has towards etcd; empty where there is none. Sends nothing."""
    try:
        host, _, port = StoreConfig(endpoints=setup.endpoints).targets[0].rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(*found[:3]) as sock:
            sock.connect(found[4])
            return str(sock.getsockname()[0])
    except Exception:  # an endpoint that is wrong is another check's
        return ""
