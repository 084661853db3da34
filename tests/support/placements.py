"""Models and clusters to place, and what each site leads and holds of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from hypothesis import strategies as st

from elasticps.core.ids import NodeId, ServerId
from elasticps.core.placement import Site, moves

Places = list[tuple[ServerId, ...]]
Situation = tuple[list[int], list[Site], list[list[ServerId]] | None]
"""Sizes, sites, and where the blocks are."""

MIB = 1 << 20


def site(node: str, incarnation: int = 1, *, weight: float = 1.0, zone: str = "") -> Site:
    server = ServerId(f"{node}/{incarnation}")
    return Site(server=server, node=NodeId(node), weight=weight, zone=zone)


def equals(count: int) -> list[Site]:
    return [site(f"n{index}") for index in range(count)]


def servers(*nodes: str) -> tuple[ServerId, ...]:
    return tuple(ServerId(f"{node}/1") for node in nodes)


equal_blocks = st.builds(lambda count: [4 * MIB] * count, st.integers(1, 100))
model_blocks = st.lists(  # most blocks are full, the last of each parameter is not
    st.one_of(st.just(4 * MIB), st.just(4 * MIB), st.integers(1, 4 * MIB)), min_size=1, max_size=60
)
odd_blocks = st.lists(st.integers(0, 20), min_size=1, max_size=40)
any_blocks = st.one_of(equal_blocks, model_blocks, odd_blocks)

no_zone = st.just("")
few_zones = st.sampled_from(["rack-a", "rack-b", "rack-c"])
same_weight = st.just(1.0)
near_weights = st.sampled_from([0.5, 1.0, 2.0])
wild_weights = st.floats(0.01, 100.0, allow_nan=False)


@st.composite
def clusters(
    draw: st.DrawFn,
    *,
    weights: st.SearchStrategy[float] = same_weight,
    zones: st.SearchStrategy[str] = no_zone,
    min_nodes: int = 1,
    max_servers: int = 2,
) -> list[Site]:
    found = []
    for index in range(draw(st.integers(min_nodes, 7))):
        zone = draw(zones)
        found += [
            site(f"n{index}", incarnation, weight=draw(weights), zone=zone)
            for incarnation in range(draw(st.integers(1, max_servers)))
        ]
    return found


@st.composite
def situations(draw: st.DrawFn, cluster: st.SearchStrategy[list[Site]]) -> Situation:
    """Any blocks on any sites, some of them gone, as no plan of ours would leave them."""
    sites = draw(cluster)
    sizes = draw(any_blocks)
    names = [one.server for one in sites] + list(servers("gone", "lost"))
    held = st.lists(st.sampled_from(names), max_size=4, unique=True)
    current = draw(st.lists(held, min_size=len(sizes), max_size=len(sizes)))
    return sizes, sites, draw(st.one_of(st.none(), st.just(current)))


any_zones = st.one_of(no_zone, few_zones)
anywhere = situations(clusters(weights=wild_weights, zones=any_zones))
among_equals = situations(clusters(zones=any_zones))
replica_counts = st.integers(1, 4)


def led(sizes: Sequence[int], places: Places) -> Counter[ServerId]:
    bytes_of: Counter[ServerId] = Counter()
    for size, home in zip(sizes, places, strict=True):
        bytes_of[home[0]] += size
    return bytes_of


def held(sizes: Sequence[int], places: Places) -> Counter[ServerId]:
    bytes_of: Counter[ServerId] = Counter()
    for size, home in zip(sizes, places, strict=True):
        bytes_of.update(dict.fromkeys(home, size))
    return bytes_of


def shares(sizes: Sequence[int], sites: Sequence[Site]) -> dict[ServerId, Fraction]:
    whole = sum(Fraction(one.weight) for one in sites)
    return {one.server: sum(sizes) * Fraction(one.weight) / whole for one in sites}


def replica_shares(
    sizes: Sequence[int], sites: Sequence[Site], replicas: int
) -> dict[ServerId, Fraction]:
    """Ideal shares of all replicas: by weight, but ``sum(sizes)`` at most in one domain."""
    zoned = len({one.zone or f"node {one.node}" for one in sites}) >= replicas

    def domain(one: Site) -> str:
        return one.zone if zoned and one.zone else f"node {one.node}"

    weights: dict[str, Fraction] = {}
    for one in sites:
        weights[domain(one)] = weights.get(domain(one), Fraction()) + Fraction(one.weight)
    left = Fraction(min(replicas, len(weights)) * sum(sizes))
    part: dict[str, Fraction] = {}
    while len(part) < len(weights):
        rest = sum(weights[name] for name in weights if name not in part)
        heaviest = max((name for name in weights if name not in part), key=weights.__getitem__)
        if left * weights[heaviest] / rest > sum(sizes):
            part[heaviest] = Fraction(sum(sizes))
            left -= sum(sizes)
        else:
            part |= {n: left * w / rest for n, w in weights.items() if n not in part}
    return {
        one.server: part[domain(one)] * Fraction(one.weight) / weights[domain(one)] for one in sites
    }


def moved(sizes: Sequence[int], current: Sequence[Sequence[ServerId]], target: Places) -> int:
    return sum(move.size for move in moves(sizes, current, target))
