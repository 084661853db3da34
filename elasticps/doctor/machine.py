"""The checks of one machine, with or without its daemon, and how they are run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from elasticps.daemon.machine_facts import MachineFacts, machine_facts
from elasticps.doctor.checks import limits
from elasticps.doctor.checks.addresses import addresses
from elasticps.doctor.checks.certificates import certificates
from elasticps.doctor.checks.clock import clock
from elasticps.doctor.checks.configuration import configuration
from elasticps.doctor.checks.etcd import etcd
from elasticps.doctor.checks.files import files
from elasticps.doctor.checks.folders import folders
from elasticps.doctor.checks.packages import packages, plugins
from elasticps.doctor.checks.ports import ports
from elasticps.doctor.finding import Finding, Row, rows, unchecked
from elasticps.doctor.setup import Setup

LIMIT_S = 20.0
"""No check takes longer; what it would have found is not checked then."""

MachineCheck = Callable[[Setup], Awaitable[Sequence[Finding]]]
FactsCheck = Callable[[MachineFacts], Sequence[Finding]]

FACTS_CHECKS: tuple[tuple[str, FactsCheck], ...] = (
    ("packages", packages),
    ("open files", limits.open_files),
    ("locked memory", limits.locked_memory),
    ("shared memory", limits.shared_memory),
    ("disk", limits.disk),
)
"""Judged of a machine's facts: of this one, and of each node of a cluster by what its API says."""


def _of_facts(check: FactsCheck) -> MachineCheck:
    async def run(setup: Setup) -> Sequence[Finding]:
        folders_of = {key: setup.path(key) for key in ("state_dir", "log_dir")}
        named = {key: path for key, path in folders_of.items() if path}
        return check(await asyncio.to_thread(machine_facts, named, None))

    return run


CHECKS: tuple[tuple[str, MachineCheck], ...] = (
    ("configuration", configuration),
    ("files", files),
    ("certificates", certificates),
    ("etcd", etcd),
    ("clock", clock),
    ("addresses", addresses),
    ("ports", ports),
    ("folders", folders),
    ("plugins", plugins),
    *((name, _of_facts(check)) for name, check in FACTS_CHECKS),
)


async def examine(setup: Setup, tell: Callable[[str], None]) -> list[Row]:
    """Every check's findings, in order; ``tell`` hears which one is under way."""
    found = []
    for name, check in CHECKS:
        tell(f"checking this machine: {name}")
        found += rows(f"this machine, node {setup.node}", name, await _run(check, setup))
    return found


async def _run(check: MachineCheck, setup: Setup) -> Sequence[Finding]:
    """A check that fails itself says nothing about the machine, and costs no other check."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await check(setup)
    except TimeoutError:
        return [unchecked(f"it took longer than {LIMIT_S:g} s")]
    except Exception as error:
        return [unchecked(f"the check itself failed: {type(error).__name__}: {error}")]
