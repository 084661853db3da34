"""Would the daemon start with what it is told?"""

from __future__ import annotations

from elasticps.doctor.finding import Finding, ok, refused
from elasticps.doctor.setup import Setup
from elasticps.errors import UsageError


async def configuration(setup: Setup) -> list[Finding]:
    where = setup.settings.file or "no file, defaults and variables alone"
    try:
        config = setup.config()
    except UsageError as error:
        return [refused(error)]
    kind = "TLS and tokens" if config.security else "no TLS, no tokens"
    return [ok(f"{where}: node {config.node} of cluster {config.cluster}, {kind}")]
