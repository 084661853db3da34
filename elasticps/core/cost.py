"""How long a step takes under each strategy and codec, predicted from what was measured.

A transfer costs a fixed time and a time for each byte (Hockney 1994, "The communication challenge
for MPP"). The bytes are those of the busiest node's link, in the direction that has more:

- parameter server, a shard server beside the workers of each node: push (n - 1) / n of the model
  for each of a node's workers, pull as many (Zhang et al. 2017, "Poseidon", section 3.2, table 1),
  more where one server leads more than its share;
- replication: each further copy of what a server leads, uncoded (decision 2);
- all-reduce by a ring: 2 (p - 1) / p of the model in 2 (p - 1) hops (Thakur, Rabenseifner and Gropp
  2005, section 4.5; Patarasuk and Yuan 2009);
- gossip on a ring: the model of each of two neighbours (Lian et al. 2017).

What is not the link (copies, checksums, sums, the optimizer) was measured with it. So a prediction
for the measured link is the measured time, and one for another link differs from it by what the
formulas differ: it has no other free number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elasticps.core.choices import Candidate, Kind
from elasticps.core.measured import Measured

NAMED = 0.1
"""A part of a step that a reason names as the second has so much of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A node's link to the others: bytes a second each way, and the time there and back."""

    bytes_per_s: float
    round_trip_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the job runs on. ``largest_block_bytes``: at least so much is led by one server."""

    nodes: int
    replicas: int
    largest_block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A step's seconds by what they go to, in the order in which they pass."""

    candidate: Candidate
    parts: Mapping[str, float]

    @property
    def step_s(self) -> float:
        return sum(self.parts.values())

    @property
    def reason(self) -> str:
        """Where the time goes: the one or two largest parts, ``push 58%, pull 31%``."""
        first, second = sorted(self.parts.items(), key=lambda part: -part[1])[:2]
        total = self.step_s or 1.0
        told = [first, second] if second[1] >= NAMED * total else [first]
        return ", ".join(f"{name} {item / total:.0%}" for name, item in told)


def measured_link(measured: Measured, setting: Setting) -> Link | None:
    """The node's link; None where the job has one worker, or one node, and so none."""
    if setting.nodes < 2 or not measured.bytes_per_s:
        return None
    share = measured.workers / setting.nodes
    return Link(
        bytes_per_s=measured.bytes_per_s * max(1.0, share), round_trip_s=measured.round_trip_s
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """``nbytes`` over the busiest node's link, and how many round trips are waited for."""

    nbytes: float
    round_trips: float

    def over(self, link: Link | None) -> float:
        """Seconds."""
        if link is None:
            return 0.0
        return self.nbytes / link.bytes_per_s + self.round_trips * link.round_trip_s


class Costs:
    """The parts of a step over ``link``, in seconds; None is the link that was measured."""

    def __init__(self, measured: Measured, setting: Setting, link: Link | None = None) -> None:
        self.measured = measured
        self._before = measured_link(measured, setting)
        self._link = (link or self._before) if setting.nodes > 1 else None
        self._model = measured.model_bytes
        self._servers = setting.nodes
        self._a_node = max(1.0, measured.workers / setting.nodes)
        largest = setting.largest_block_bytes / measured.model_bytes
        self._busiest = max(1.0 / setting.nodes, min(1.0, largest))
        self._copies = min(setting.replicas, setting.nodes) - 1

    # -- the formulas ---------------------------------------------------------------------------

    def _pushed(self, fraction: float) -> Traffic:
        return Traffic(nbytes=self._spread() * fraction, round_trips=1)

    def _replicated(self) -> Traffic:
        nbytes = self._copies * self._busiest * self._model
        return Traffic(nbytes=nbytes, round_trips=min(1, self._copies))

    def _voted(self) -> Traffic:
        return Traffic(nbytes=0, round_trips=1 + min(1, self._copies))

    def _spread(self) -> float:
        """A model for each worker between workers and servers, less what stays on its node."""
        workers = self.measured.workers
        others = workers - self._a_node if workers >= self._servers else workers
        at_server = others * self._busiest
        at_worker = self._a_node * (self._servers - 1) / self._servers
        return max(at_server, at_worker) * self._model

    def _summed(self) -> Traffic:
        hops = self.measured.workers - 1
        nbytes = 2 * hops / self.measured.workers * self._model * self._a_node
        return Traffic(nbytes=nbytes, round_trips=hops)  # a hop is half of one

    def _fetched(self, neighbours: int) -> Traffic:
        return Traffic(nbytes=neighbours * self._model * self._a_node, round_trips=2)

    def _now(self, measured_s: float, was: Traffic, now: Traffic) -> float:
        """What took ``measured_s`` with the traffic and the link that were, as they are now."""
        return max(0.0, measured_s + now.over(self._link) - was.over(self._before))

    # -- the parts ------------------------------------------------------------------------------

    def pull(self) -> float:
        traffic = Traffic(nbytes=self._spread(), round_trips=1)
        return self._now(self.measured.pull_s, traffic, traffic)

    def vote(self) -> float:
        return self._now(self.measured.vote_s, self._voted(), self._voted())

    def stage(self, codec: str) -> dict[str, float]:
        """Push and replicate, with what the codec takes and saves."""
        measured = self.measured
        speed = measured.codecs.get(codec)
        whole, sent = self._pushed(1.0), self._pushed(speed.fraction if speed else 1.0)
        staged_s = measured.exchange_s - measured.pull_s - measured.vote_s
        copies = self._replicated()
        was = Traffic(
            nbytes=whole.nbytes + copies.nbytes, round_trips=whole.round_trips + copies.round_trips
        )
        now = Traffic(nbytes=sent.nbytes + copies.nbytes, round_trips=was.round_trips)
        total = self._now(max(0.0, staged_s), was, now)
        replicate = min(total, copies.over(self._link))
        parts = {"push": total - replicate, "replicate": replicate}
        if speed is None:
            return parts
        decode_s = measured.workers * self._busiest * speed.decode_s
        return {"encode": speed.encode_s, **parts, "decode": decode_s}

    def sum(self) -> float:
        traffic = self._summed()
        return self._now(self.measured.sum_s, traffic, traffic) + self.measured.copy_s

    def neighbours(self) -> float:
        """The models of two neighbours on a ring; of one where there are two workers."""
        count = min(2, self.measured.workers - 1)
        traffic = self._fetched(count)
        measured_s = count * self.measured.fetch_s
        return self._now(measured_s, traffic, traffic) + self.measured.copy_s


def predict(costs: Costs, candidate: Candidate) -> Prediction:
    """A step of ``candidate``: what it computes, and its part of a period's exchange."""
    measured = costs.measured
    parts = {"compute": measured.compute_s}
    if candidate.kind is not Kind.GRADIENTS:
        parts["update"] = measured.optimizer_s
    for name, item in _EXCHANGES[candidate.kind](costs, candidate.codec).items():
        parts[name] = item / candidate.h
    return Prediction(candidate=candidate, parts=parts)


def _round(costs: Costs, codec: str) -> dict[str, float]:
    return {**costs.stage(codec), "vote": costs.vote(), "pull": costs.pull()}


def _progress(costs: Costs, codec: str) -> dict[str, float]:
    return {"copy": costs.measured.copy_s, **_round(costs, codec)}


def _sum(costs: Costs, _codec: str) -> dict[str, float]:
    return {"sum": costs.sum(), "vote": costs.vote()}


def _neighbours(costs: Costs, _codec: str) -> dict[str, float]:
    return {"peers": costs.neighbours(), "vote": costs.vote()}


_EXCHANGES: Mapping[Kind, Callable[[Costs, str], dict[str, float]]] = {
    Kind.GRADIENTS: _round,
    Kind.PROGRESS: _progress,
    Kind.CENTRE: _progress,
    Kind.SUM: _sum,
    Kind.NEIGHBOURS: _neighbours,
}
