"""The daemon's process: ``elasticps daemon``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import uvloop

from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.http.app import serve_http
from elasticps.daemon.node import Node
from elasticps.daemon.notify import Notifier
from elasticps.errors import ElasticError, StoreRolledBack
from elasticps.store import Store

log = logging.getLogger(__name__)

ROLLED_BACK = 3
"""The exit code after which the unit does not start it again: that is the operator's turn."""
SERVICE_MANAGER_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def run(config: DaemonConfig, reread: Callable[[], DaemonConfig]) -> int:
    """Be the node that ``config`` describes until asked to leave; returns the exit code.

    ``reread`` reads the configuration anew, at SIGHUP. The code is ROLLED_BACK when etcd has gone
    back behind what this node had seen.

    Raises UsageError for what the configuration cannot have, StoreError for another's etcd.
    """
    logging.basicConfig(
        level=config.log_level.upper(),
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s node={config.node} %(name)s: %(message)s",
    )
    if config.allow_insecure_network:
        log.warning("no TLS and no tokens: whoever reaches this daemon's ports owns the cluster")
    for directory in (config.state_dir, config.log_dir, config.runtime_dir):
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    try:
        return uvloop.run(_run(config, reread))
    except BaseExceptionGroup as errors:
        cause = _cause(errors)
        if not isinstance(cause, StoreRolledBack):
            raise cause from errors
        log.critical("%s", cause)
        return ROLLED_BACK


async def _run(config: DaemonConfig, reread: Callable[[], DaemonConfig]) -> int:
    notifier = Notifier.from_environment()
    for name in SERVICE_MANAGER_VARIABLES:  # they are meant for this process, not for its children
        os.environ.pop(name, None)
    async with Store(config.etcd) as store:
        return await Node(config, store, notifier, reread).run(serve_http)


def _cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that says what the user can do, else the first of all."""
    known = errors.subgroup(ElasticError)
    error: BaseException = known or errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
