"""Is each endpoint of etcd there, of a good version, with a leader, with room, and let in by?"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import replace

from elasticps.daemon.config import is_loopback
from elasticps.doctor.etcd_http import EtcdHttp, expiry, look
from elasticps.doctor.finding import Finding, fault, ok, refused, size, unchecked, warning
from elasticps.doctor.setup import Setup
from elasticps.errors import PeerUnavailable, StoreError, StoreUnavailable, UsageError
from elasticps.store import Keys, Store, StoreConfig
from elasticps.store.operations import ServerStatus

OLDEST = (3, 4, 0)
"""What the store speaks with."""
LOSING = ((3, 5, 0), (3, 5, 3))
"""From the first to before the second: killed, it may have lost what it had acknowledged."""
SOUND = (3, 5, 6)
"""Earlier ones may be damaged by a crash while they defragment."""
FULL = 0.8
SLOW_S = 0.1
_START = "`systemctl status etcd` there; etcd.endpoints (--etcd) and the firewall here"
_NO_SPACE = "`etcdctl compact REVISION`, `etcdctl defrag`, `etcdctl alarm disarm`"


async def etcd(setup: Setup) -> list[Finding]:
    """Every endpoint by itself, all at once."""
    try:
        config = setup.store()
    except UsageError as error:
        return [refused(error)]
    found = await asyncio.gather(
        *(_endpoint(_only(config, target), setup.cluster) for target in config.targets)
    )
    return [each for part in found for each in part] + _count(config)


def _only(config: StoreConfig, target: str) -> StoreConfig:
    return replace(config, endpoints=(f"https://{target}" if config.tls else target,))


def _count(config: StoreConfig) -> list[Finding]:
    if len(config.targets) != 2:
        return []
    fix = "name all members, three or five of them; one of two that dies takes etcd with it"
    return [warning("two endpoints: an even number of members outlives no more", fix=fix)]


async def _endpoint(config: StoreConfig, cluster: str) -> list[Finding]:
    (target,) = config.targets
    async with Store(config) as store:
        try:
            await store.status()
            began = time.monotonic()
            status = await store.status()
            took_s = time.monotonic() - began
        except StoreUnavailable as error:
            return [await _silent(target, error)]
        except StoreError as error:
            return [fault(f"{target}: {error.what}", fix=_let_in(config))]
        findings = [of_version(target, status, took_s, config), *_alarms(target, status)]
        try:
            await store.get(Keys(cluster).meta)
        except StoreUnavailable as error:
            findings.append(
                fault(f"{target}: {error.what}", fix="most members must run: start the others")
            )
        except StoreError as error:
            findings.append(fault(f"{target}: {error.what}", fix=_let_in(config)))
    try:
        findings += _room_and_end(target, status, await look(config))
    except PeerUnavailable as error:
        findings.append(unchecked(f"{target}: quota and clock: {error.what}"))
    return findings


async def _silent(target: str, error: StoreUnavailable) -> Finding:
    """Whether it is the network or etcd: what a plain connection says."""
    host, _, port = target.rpartition(":")
    try:
        async with asyncio.timeout(2.0):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
    except TimeoutError:
        why, fix = "no connection in time", "is the machine up, and the port open in its firewall?"
    except OSError as refusal:
        why, fix = os.strerror(refusal.errno) if refusal.errno else str(refusal), _START
    else:
        why = error.what
        fix = "it takes connections: does it want TLS (https://, etcd.ca), has it a leader?"
    return fault(f"{target}: {why}", fix=fix)


def of_version(target: str, status: ServerStatus, took_s: float, config: StoreConfig) -> Finding:
    """What the endpoint's version and its latency, in seconds, say of it."""
    kind = "TLS" if config.tls else "no TLS"
    user = f", user {config.username}" if config.username else ""
    saw = f"{target}: etcd {status.version}, {took_s * 1e3:.1f} ms, {kind}{user}"
    version = tuple(int(part) for part in re.findall(r"\d+", status.version)[:3])
    if version < OLDEST:
        return fault(saw, fix="upgrade etcd to 3.5.6 or newer; it must be 3.4 or newer")
    if LOSING[0] <= version < LOSING[1]:
        why = "etcd 3.5.0 to 3.5.2, when killed, can lose writes that it has acknowledged"
        return warning(saw, fix=f"upgrade etcd to 3.5.6 or newer: {why}")
    if took_s > SLOW_S:
        return warning(saw, fix="a slow disk or network of etcd; leases want less than 100 ms")
    if version < SOUND and not is_loopback(target.rpartition(":")[0].strip("[]")):
        return warning(saw, fix="upgrade: etcd before 3.5.6 can lose data at a crash")
    return ok(saw)


def _alarms(target: str, status: ServerStatus) -> list[Finding]:
    return [
        fault(f"{target}: {error}", fix=_NO_SPACE if "NOSPACE" in error else "etcd's own log")
        for error in status.errors
    ]


def _room_and_end(target: str, status: ServerStatus, seen: EtcdHttp) -> list[Finding]:
    if not seen.quota_bytes:
        findings = [unchecked(f"{target}: {size(status.db_size)}; it does not tell its quota")]
    else:
        saw = f"{target}: {size(status.db_size)} of {size(seen.quota_bytes)}"
        full = status.db_size > FULL * seen.quota_bytes
        fix = f"before it takes no writes: {_NO_SPACE}, or a larger --quota-backend-bytes"
        findings = [warning(saw, fix=fix) if full else ok(saw)]
    if seen.good_until is not None:
        renew = "`elasticps certs issue`, then etcd takes it up at the next handshake"
        findings.append(expiry(f"{target}: its certificate", seen.good_until, renew))
    return findings


def _let_in(config: StoreConfig) -> str:
    if config.username is None:
        return "etcd wants a user: etcd.user and etcd.password_file, or etcd.cert and etcd.key"
    return f"`etcdctl user get {config.username}`: its password, and readwrite on /elasticps/"
