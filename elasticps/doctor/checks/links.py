"""Does every node reach every other's data port, and how well?"""

from __future__ import annotations

from math import inf
from statistics import median

from elasticps.daemon.measured_link import MeasuredLink
from elasticps.doctor.finding import Finding, fault, ok, unchecked, warning
from elasticps.doctor.seen import Seen

NARROW_BYTES_PER_S = 12.5e6
"""100 Mbit/s: a model of 100 MB takes 8 s each way, each step."""
FAR_S = 0.02
ODD = 4.0
"""So many times narrower than the others is an accident: a port at another speed, a bad cable."""


def links(seen: Seen) -> list[Finding]:
    """Faults and warnings one by one, the narrowest first; all that is well in one line."""
    if len(seen.members) < 2:
        return [unchecked("there is one node")]
    found = [(name, link) for name, row in sorted(seen.links.items()) for link in row]
    findings = [_broken(name, link) for name, link in found if link.error]
    good = [(name, link) for name, link in found if not link.error]
    usual = median([link.bytes_per_s for _, link in good if link.bytes_per_s] or [0.0])
    for name, link in sorted(good, key=lambda pair: pair[1].bytes_per_s or inf):
        findings += _slow(name, link, usual)
    findings += [
        unchecked(f"from {name}: {why}", fix="a token of the role admin, where its API is reached")
        for name, why in sorted(seen.unmeasured.items())
    ]
    if seen.left_out:
        saw = f"the width of {seen.left_out} links: each node is measured to the next few"
        findings.append(unchecked(saw))
    return [*findings, *_summary([link for _, link in good])]


def _broken(name: str, link: MeasuredLink) -> Finding:
    saw = f"{name} does not reach the data port of {link.to}: {link.error}"
    fix = f"the firewall between, and `data` and the certificate of {link.to}"
    return fault(saw, fix=fix)


def _slow(name: str, link: MeasuredLink, usual: float) -> list[Finding]:
    findings = []
    way = f"{name} to {link.to}"
    rate = link.bytes_per_s
    if rate is not None and rate < NARROW_BYTES_PER_S:
        fix = "--codec int8 or --strategy local-sgd; `elasticps plan --link` says what a step takes"
        findings.append(warning(f"{way}: {bits(rate)}", fix=fix))
    elif rate is not None and is_narrow(rate, usual):
        fix = "`ethtool`, `iperf3`: the speed of the port, errors, who else uses it"
        findings.append(warning(f"{way}: {bits(rate)}, others {bits(usual)}", fix=fix))
    if link.round_trip_s is not None and link.round_trip_s > FAR_S:
        fix = "a step waits for some round trips: `elasticps plan --link`, local-sgd"
        findings.append(warning(f"{way}: {_ms(link.round_trip_s)} there and back", fix=fix))
    return findings


def is_narrow(bytes_per_s: float, usual: float) -> bool:
    """By itself, or beside the cluster's other links, of which half are wider than ``usual``."""
    return bytes_per_s < max(NARROW_BYTES_PER_S, usual / ODD)


def _summary(good: list[MeasuredLink]) -> list[Finding]:
    trips = [link.round_trip_s for link in good if link.round_trip_s is not None]
    rates = [link.bytes_per_s for link in good if link.bytes_per_s is not None]
    if not trips:
        return []
    saw = f"{len(trips)} links answer in {_span(_ms(min(trips)), _ms(max(trips)))}"
    if rates:
        saw += f", {len(rates)} carry {_span(bits(min(rates)), bits(max(rates)))}"
    return [ok(saw)]


def _span(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms"


def bits(bytes_per_s: float) -> str:
    """``850 Mbit/s``, ``9.4 Gbit/s``."""
    rate = bytes_per_s * 8
    for unit, scale in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if rate >= scale:
            return f"{rate / scale:.3g} {unit}"
    return f"{rate / 1e3:.3g} kbit/s"
