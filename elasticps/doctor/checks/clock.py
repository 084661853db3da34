"""Does this machine's wall clock agree with etcd's? Certificates and passes are judged by it."""

from __future__ import annotations

from dataclasses import replace

from elasticps.doctor.etcd_http import Clock, look
from elasticps.doctor.finding import Finding, ok, unchecked, warning
from elasticps.doctor.setup import Setup
from elasticps.errors import PeerUnavailable, UsageError

ALLOWED_S = 2.0
FIX = "keep time by chrony or systemd-timesyncd: `timedatectl set-ntp true`"


async def clock(setup: Setup) -> list[Finding]:
    """Against the first endpoint that answers."""
    try:
        config = setup.store()
    except UsageError as error:
        return [unchecked(f"etcd is not told rightly: {error.what}")]
    why = "etcd tells no time"
    for target in config.targets:
        only = replace(config, endpoints=(f"https://{target}" if config.tls else target,))
        try:
            seen = (await look(only)).clock
        except PeerUnavailable:
            why = f"etcd at {target} does not answer"
            continue
        if seen is not None:
            return [apart(f"etcd at {target}", seen)]
    return [unchecked(why, fix="first mend etcd")]


def apart(whose: str, seen: Clock) -> Finding:
    if abs(seen.off_s) <= ALLOWED_S:
        return ok(f"within {ALLOWED_S:g} s of that of {whose}")
    side = "behind" if seen.off_s > 0 else "ahead of"
    return warning(f"{abs(seen.off_s):.0f} s {side} that of {whose}", fix=FIX)
