"""Which ways to a shard server a worker may take, as its environment says."""

from __future__ import annotations

from elasticps.errors import UsageError

TRANSPORTS_VARIABLE = "ELASTICPS_TRANSPORTS"
SHM, UNIX, TCP = "shm", "unix", "tcp"
ALL = frozenset({SHM, UNIX, TCP})
"""Shared memory is shown over a Unix socket: without that there is none."""


def allowed_transports(text: str) -> frozenset[str]:
    """What ``text`` names, as in "unix,tcp"; all where it is empty. Raises UsageError."""
    named = frozenset(filter(None, (word.strip() for word in text.split(","))))
    limit = f"{TCP}, which reaches every machine, and any of: {', '.join(sorted(ALL - {TCP}))}"
    for name in sorted(named - ALL):
        raise UsageError(f"no transport: {name[:80]!r}", field=TRANSPORTS_VARIABLE, limit=limit)
    if named and TCP not in named:
        raise UsageError("tcp is left out", field=TRANSPORTS_VARIABLE, limit=limit)
    return named or ALL
