"""Do all nodes run the same, and have they the same time?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from elasticps.daemon.machine_facts import MachineFacts
from elasticps.doctor.checks.clock import ALLOWED_S, FIX
from elasticps.doctor.finding import Finding, ok, unchecked, warning
from elasticps.doctor.seen import Seen


def versions(seen: Seen) -> list[Finding]:
    """Of elasticps, torch and Python. Copies are equal to the bit only where these are."""
    upgrade = "upgrade the others, then `elasticps restart --rolling`"
    same = "the same packages on all nodes: equal copies are equal to the bit by the same torch"
    return [
        *_equal("elasticps", seen, lambda facts: facts.elasticps, upgrade),
        *_equal("torch", seen, lambda facts: facts.torch, same),
        *_equal("Python", seen, lambda facts: facts.python, same),
        *_silent(seen),
    ]


def plugins(seen: Seen) -> list[Finding]:
    """A job runs on every node, and needs its plugins there."""
    if len(seen.facts) < 2:
        return [unchecked("fewer than two nodes have told theirs")]
    everywhere = set.intersection(*(set(facts.plugins) for facts in seen.facts.values()))
    findings = [
        warning(f"{name} alone has {plugin}", fix=f"pip install it on {_others(seen, plugin)}")
        for name, facts in sorted(seen.facts.items())
        for plugin in sorted(set(facts.plugins) - everywhere)
    ]
    return findings or [ok(f"the same {len(everywhere)} on {len(seen.facts)} nodes")]


def clocks(seen: Seen) -> list[Finding]:
    """Between the nodes: the first is the measure, for the one who asks may have a wrong clock."""
    if len(seen.clocks) < 2:
        return [unchecked("fewer than two nodes have told theirs")]
    (first, base), *rest = sorted(seen.clocks.items())
    findings = []
    for name, clock in rest:
        least, most = clock.least - base.most, clock.most - base.least
        off_s = max(least, 0.0) + min(most, 0.0)
        if abs(off_s) > ALLOWED_S:
            side = "ahead of" if off_s > 0 else "behind"
            findings.append(warning(f"{name} is {abs(off_s):.0f} s {side} {first}", fix=FIX))
    return findings or [ok(f"within {ALLOWED_S:g} s of each other")]


def _others(seen: Seen, plugin: str) -> str:
    return ", ".join(
        name for name, facts in sorted(seen.facts.items()) if plugin not in facts.plugins
    )


def _equal(what: str, seen: Seen, of: Callable[[MachineFacts], str], fix: str) -> list[Finding]:
    found = _by(seen.facts, of)
    if not found:
        return []
    if len(found) == 1:
        return [ok(f"{what} {next(iter(found))}")]
    told = "; ".join(f"{value or 'absent'} on {', '.join(names)}" for value, names in found.items())
    return [warning(f"{what} {told}", fix=fix)]


def _by(
    facts: Mapping[str, MachineFacts], of: Callable[[MachineFacts], str]
) -> dict[str, list[str]]:
    found = defaultdict(list)
    for name, each in sorted(facts.items()):
        found[of(each)].append(name)
    return dict(found)


def _silent(seen: Seen) -> list[Finding]:
    return [
        unchecked(
            f"{name}: {why}", fix="from a machine that reaches its API; its certificate's hosts"
        )
        for name, why in sorted(seen.unasked.items())
    ]
