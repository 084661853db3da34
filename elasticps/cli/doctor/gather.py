"""Asking a running cluster all that its checks look at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import median

from elasticps.cli.answers import Job, Node
from elasticps.cli.client import Api
from elasticps.daemon.machine_facts import MachineFacts
from elasticps.daemon.measured_link import MeasuredLink
from elasticps.doctor.checks.links import is_narrow
from elasticps.doctor.etcd_http import Clock
from elasticps.doctor.seen import JobSeen, Member, Seen
from elasticps.errors import ElasticError

PROBE_BYTES = 16 << 20
MEASURED_AGAIN = 8
WIDE_LINKS = 4
"""To how many others each node's link is measured for width: of many nodes there are too many."""


async def gather(api: Api, tell: Callable[[str], None]) -> Seen:
    """Raises ElasticError where the daemon itself does not answer."""
    tell("asking the cluster: status")
    status = await api.status()
    nodes = [node for node in status.nodes if node.reachable]
    tell(f"asking the cluster: the machines of {len(nodes)} nodes")
    found = _Found()
    await asyncio.gather(*(_machine(api, node, found) for node in nodes))
    await _links(api, nodes, found, tell)
    return Seen(
        cluster=status.cluster,
        leader=status.leader,
        members=tuple(map(_member, status.nodes)),
        jobs=tuple(_job(job) for job in status.jobs if not job.final),
        facts=found.facts,
        clocks=found.clocks,
        unasked=found.unasked,
        links={name: tuple(row.values()) for name, row in found.links.items()},
        unmeasured=found.unmeasured,
        left_out=len(nodes) * max(0, len(nodes) - 1 - WIDE_LINKS),
    )


class _Found:
    def __init__(self) -> None:
        self.facts: dict[str, MachineFacts] = {}
        self.clocks: dict[str, Clock] = {}
        self.unasked: dict[str, str] = {}
        self.links: dict[str, dict[str, MeasuredLink]] = {}
        self.unmeasured: dict[str, str] = {}


async def _machine(api: Api, node: Node, found: _Found) -> None:
    asked = time.time()
    try:
        facts = await api.machine(node)
    except ElasticError as error:
        found.unasked[node.node] = error.what
        return
    answered = time.time()
    found.facts[node.node] = facts
    found.clocks[node.node] = Clock(least=facts.unix_s - answered, most=facts.unix_s - asked)


async def _links(api: Api, nodes: list[Node], found: _Found, tell: Callable[[str], None]) -> None:
    """First whether each reaches all, then the width: each sends to one and hears one at a time."""
    if len(nodes) < 2:
        return
    tell("asking the cluster: does each node reach the others")
    names = [node.node for node in nodes]
    others = [tuple(each for each in names if each != name) for name in names]
    await asyncio.gather(
        *(_measure(api, node, to, 0, found) for node, to in zip(nodes, others, strict=True))
    )
    apart = min(len(nodes) - 1, WIDE_LINKS)
    for step in range(1, apart + 1):
        tell(f"measuring the links between nodes: {step} of {apart}")
        turned = names[step:] + names[:step]
        await asyncio.gather(
            *(
                _measure(api, node, (to,), PROBE_BYTES, found)
                for node, to in zip(nodes, turned, strict=True)
                if _answers(found, node.node, to)
            )
        )
    await _again(api, {node.node: node for node in nodes}, found, tell)


async def _again(
    api: Api, nodes: dict[str, Node], found: _Found, tell: Callable[[str], None]
) -> None:
    """Measure the odd ones alone: what one bad cable does to the others is not their fault."""
    suspects = sorted(
        (link.bytes_per_s, name, str(to))
        for name, row in found.links.items()
        for to, link in row.items()
        if link.bytes_per_s is not None
    )
    usual = median(rate for rate, _, _ in suspects) if suspects else 0.0
    odd = [row for row in suspects if is_narrow(row[0], usual)][:MEASURED_AGAIN]
    for number, (rate, name, to) in enumerate(odd, 1):
        tell(f"measuring narrow links again, alone: {number} of {len(odd)}")
        before = found.links[name][to]
        await _measure(api, nodes[name], (to,), PROBE_BYTES, found)
        if (found.links[name][to].bytes_per_s or 0.0) < rate:
            found.links[name][to] = before


def _answers(found: _Found, name: str, to: str) -> bool:
    link = found.links.get(name, {}).get(to)
    return link is not None and not link.error


async def _measure(api: Api, node: Node, to: tuple[str, ...], nbytes: int, found: _Found) -> None:
    try:
        links = await api.links(node, to, nbytes)
    except ElasticError as error:
        found.unmeasured[node.node] = error.what
        return
    row = found.links.setdefault(node.node, {})
    row.update((link.to, link) for link in links)


def _member(node: Node) -> Member:
    return Member(
        name=node.node,
        state=node.state,
        reachable=node.reachable,
        restarts=sum(child.restarts for child in node.children),
    )


def _job(job: Job) -> JobSeen:
    return JobSeen(
        name=job.job,
        replicas=job.replicas,
        under_replicated=job.under_replicated,
        pending_moves=job.pending_moves,
        failed_checkpoints=job.checkpoint_attempts.failed,
        lost=job.verdict.lost,
        duplicated=job.verdict.duplicated,
    )
