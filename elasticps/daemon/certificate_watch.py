"""A daemon that runs for months says, too, that its certificate ends soon."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from elasticps.daemon.machine_facts import until
from elasticps.security.tls import SOON

log = logging.getLogger(__name__)

DAY_S = 86_400.0


async def warn_of_end(cert: Path) -> None:
    """Look at the file once a day, the first time after a day, and log a warning; never returns.

    A certificate that is put in its place counts at the next look. The start has its own warning.
    """
    while True:
        await asyncio.sleep(DAY_S)
        until_unix = until(cert)
        if until_unix is None:
            log.warning("%s: when the node's certificate ends cannot be read", cert)
        elif told := end_told(cert, until_unix, time.time()):
            log.warning("%s", told)


def end_told(cert: Path, until_unix: float, now_unix: float) -> str:
    """That the certificate has ended or ends soon, and what to do; empty where it does not."""
    left_s = until_unix - now_unix
    if left_s >= SOON.total_seconds():
        return ""
    end = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(until_unix))
    how = f"ends in {left_s // DAY_S:.0f} days, at {end}" if left_s > 0 else f"has ended at {end}"
    return (
        f"{cert} {how}: then no other node talks to this one;"
        " `elasticps certs issue` makes another, which is taken from the file without a restart"
    )
