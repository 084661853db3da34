"""What etcd says over plain HTTP on its client port, beside gRPC: its clock, quota, certificate."""

from __future__ import annotations

import asyncio
import datetime
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import aiohttp

from elasticps.doctor.finding import Finding, ok, warning
from elasticps.errors import PeerUnavailable
from elasticps.store.config import StoreConfig

TIMEOUT = aiohttp.ClientTimeout(total=3.0)
_QUOTA = re.compile(rb"^etcd_server_quota_backend_bytes (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Another machine's wall clock less this one's, in seconds: from ``least`` to ``most``."""

    least: float
    most: float

    @property
    def off_s(self) -> float:
        """The smallest difference that explains what was seen; 0 where none is needed."""
        return max(self.least, 0.0) + min(self.most, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdHttp:
    """``quota_bytes`` None: etcd does not say. ``good_until``: of its certificate, with TLS."""

    clock: Clock | None
    quota_bytes: int | None
    good_until: datetime.datetime | None


async def look(config: StoreConfig) -> EtcdHttp:
    """Ask the one endpoint of ``config``. Raises PeerUnavailable."""
    (target,) = config.targets
    url = f"{'https' if config.tls else 'http'}://{target}"
    connector = aiohttp.TCPConnector(ssl=_context(config) if config.tls else True)
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
            asked = time.time()
            async with session.get(f"{url}/version") as answer:
                clock = _clock(answer.headers.get("Date"), asked, time.time())
            async with session.get(f"{url}/metrics") as answer:
                found = _QUOTA.search(await answer.read())
            good_until = await _good_until(config) if config.tls else None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise PeerUnavailable(str(error) or type(error).__name__, where=url) from None
    quota = int(float(found[1])) if found else None
    return EtcdHttp(clock=clock, quota_bytes=quota, good_until=good_until)


def expiry(what: str, until: datetime.datetime, fix: str) -> Finding:
    """How long a certificate that is good now stays so."""
    from elasticps.security.tls import SOON

    left = until - datetime.datetime.now(datetime.UTC)
    saw = f"{what} is good for {left.days} days, until {until:%Y-%m-%d}"
    return warning(saw, fix=fix) if left < SOON else ok(saw)


def _clock(date: str | None, asked: float, answered: float) -> Clock | None:
    """Of an answer's Date, which leaves out the part of a second."""
    if date is None:
        return None
    try:
        told = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    return Clock(least=told - answered, most=told + 1.0 - asked)


async def _good_until(config: StoreConfig) -> datetime.datetime | None:
    host, _, port = config.targets[0].rpartition(":")
    _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=_context(config))
    peer = writer.get_extra_info("peercert")
    writer.transport.abort()
    if not peer:
        return None
    seconds = ssl.cert_time_to_seconds(peer["notAfter"])
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _context(config: StoreConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.ca)
    if config.cert is not None:
        context.load_cert_chain(config.cert, config.key)
    return context
