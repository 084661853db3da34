"""``join()``: how a script's process becomes a worker of the job that it was started for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from elasticps.errors import UsageError
from elasticps.wire.address import Address
from elasticps.wire.control_messages import Welcome
from elasticps.wire.spans import Spans
from elasticps.wire.transports import TRANSPORTS_VARIABLE, allowed_transports
from elasticps.worker.agent import Agent
from elasticps.worker.data_loop import DataLoop
from elasticps.worker.metrics_file import METRICS_VARIABLE, MetricsFile
from elasticps.worker.run import Run

AGENT_VARIABLE = "ELASTICPS_AGENT"
WORKER_VARIABLE = "ELASTICPS_WORKER"
TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def forget_torchrun() -> None:
    """Take out of the environment what frameworks make process groups from.

    The job is the group: a second one, of the workers of a moment, would wait for the dead.
    """
    for name in TORCHRUN:
        os.environ.pop(name, None)


def join(environment: Mapping[str, str] | None = None) -> Run:
    """Join the job that this process was started for.

    ``elasticps run`` and the cluster's daemons set what is needed in the environment;
    ELASTICPS_TRANSPORTS=tcp there leaves out what is faster on one machine. RANK, WORLD_SIZE and
    the like, which they set too, are taken out of it: see ``run.rank``. Raises UsageError when
    this process was not started by one of them, PeerUnavailable when the daemon does not answer.
    """
    variables = os.environ if environment is None else environment
    address, uid = variables.get(AGENT_VARIABLE), variables.get(WORKER_VARIABLE)
    if not address or not uid:
        raise UsageError(
            "this process was not started by elasticps",
            field=AGENT_VARIABLE,
            hint="start the script with: elasticps run SCRIPT",
        )
    if environment is None:
        forget_torchrun()
    place = Address.parse(address)
    transports = allowed_transports(variables.get(TRANSPORTS_VARIABLE, ""))
    spans = Spans()
    loop, agent = DataLoop(spans), Agent(spans, transports)

    async def enter() -> Welcome:
        welcome = await agent.connect(place, uid)
        await agent.until(lambda: agent.job, None)
        return welcome

    try:
        welcome = loop.call(enter())
    except BaseException:
        loop.call(agent.aclose())
        loop.close()
        raise
    kept = variables.get(METRICS_VARIABLE)
    job = agent.job
    assert job is not None
    return Run(loop, agent, welcome, MetricsFile(Path(kept) / job.name) if kept else None)
