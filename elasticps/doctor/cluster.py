"""The checks of a running cluster: pure, over what its API has told."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

from elasticps.daemon.machine_facts import MachineFacts
from elasticps.doctor.checks import agreement, membership
from elasticps.doctor.checks.links import links
from elasticps.doctor.etcd_http import expiry
from elasticps.doctor.finding import Finding, Level, Row, fault, rows
from elasticps.doctor.machine import FACTS_CHECKS
from elasticps.doctor.seen import Seen

CHECKS: tuple[tuple[str, Callable[[Seen], Sequence[Finding]]], ...] = (
    ("nodes", membership.nodes),
    ("versions", agreement.versions),
    ("plugins", agreement.plugins),
    ("clocks", agreement.clocks),
    ("links", links),
    ("jobs", membership.jobs),
)


def examine(seen: Seen) -> list[Row]:
    """The findings about the cluster, then those about each node's machine that are not well."""
    where = f"cluster {seen.cluster}"
    found = [row for name, check in CHECKS for row in rows(where, name, check(seen))]
    for node, facts in sorted(seen.facts.items()):
        for name, check in (*FACTS_CHECKS, ("certificate", certificate)):
            found += [
                row for row in rows(f"node {node}", name, check(facts)) if row.level is not Level.OK
            ]
    return found


def certificate(facts: MachineFacts) -> Sequence[Finding]:
    """For how long yet it is good; it was when the node began."""
    if facts.certificate_until is None:
        return []
    until = datetime.datetime.fromtimestamp(facts.certificate_until, datetime.UTC)
    renew = "`elasticps certs issue`, then copy it over the old one (docs/security.md)"
    if until < datetime.datetime.now(datetime.UTC):
        return [fault(f"its certificate ended {until:%Y-%m-%d %H:%M}", fix=renew)]
    return [expiry("its certificate", until, renew)]
