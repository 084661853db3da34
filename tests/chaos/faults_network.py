"""Cuts between nodes, which need a network of the campaign's own, and bad weather towards etcd."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from elasticps.core.ids import NodeId
from elasticps.wire.address import Address
from tests.chaos.cluster import LEASE_TTL_S, ChaosError
from tests.chaos.links import Weather
from tests.chaos.network import Network
from tests.chaos.scene import Done, Scene, done

BLINK_S = 0.4
CUT_S = 2 * LEASE_TTL_S
SLOW_RATE = "4mbit"


async def isolate(scene: Scene) -> Done:
    """One node hears nobody and nobody hears it, etcd included, past its lease."""
    node, others = _pick(scene)
    links = scene.cluster.links[node]
    with ExitStack() as cuts:
        before = _cut(scene, cuts, [(node, other) for other in others], both_ways=True)
        await links.becomes(Weather.SILENT)
        try:
            await scene.until_replaced(node)
        finally:
            await links.becomes(Weather.FAIR)
        lost = _network(scene).dropped() - before
    return _proven(f"{node} was cut off until etcd had dropped it", lost)


async def one_way(scene: Scene) -> Done:
    """What one node sends to another is lost; the other way is open, and so is etcd."""
    node, others = _pick(scene)
    with ExitStack() as cuts:
        before = _cut(scene, cuts, [(node, others[0])], both_ways=False)
        await scene.pause(CUT_S)
        lost = _network(scene).dropped() - before
    return _proven(f"nothing of {node} reached {others[0]} for {CUT_S} s", lost)


async def cut_data(scene: Scene) -> Done:
    """Two nodes reach etcd and each other's API, but not each other's shard servers."""
    node, others = _pick(scene)
    ports = {name: _data_port(scene, name) for name in (node, others[0])}
    with ExitStack() as cuts:
        before = _network(scene).dropped()
        for source, target in ((node, others[0]), (others[0], node)):
            for match in (("dport", ports[target]), ("sport", ports[source])):
                rule = ("ipproto", "tcp", *match)
                cuts.enter_context(_network(scene).dropping(source, target, *rule))
        await scene.pause(CUT_S)
        lost = _network(scene).dropped() - before
    return _proven(f"no data between {node} and {others[0]} for {CUT_S} s", lost)


async def kill_unanswered(scene: Scene) -> Done:
    """A primary's backups hear of pushes and its workers hear no answer; then it dies."""
    node = max(scene.mortals, key=scene.leads)
    rule = ("ipproto", "tcp", "sport", _data_port(scene, node))
    with ExitStack() as cuts:
        before = _network(scene).dropped()
        for other in scene.cluster.expected - {node}:
            cuts.enter_context(_network(scene).dropping(node, other, *rule))
        await scene.pause(BLINK_S)
        at = await scene.kill_servers(node)
        lost = _network(scene).dropped() - before
    return replace(_proven(f"{node} died with its answers unheard", lost), since=at, kills=1)


async def kill_unreplicated(scene: Scene) -> Done:
    """A primary is reached by the others' workers, and reaches no backup; then it dies.

    Its own worker, which could not reach the other primaries, dies first: the rest need not wait.
    """
    node = max(scene.mortals, key=scene.leads)
    with ExitStack() as cuts:
        before = _network(scene).dropped()
        for other in scene.cluster.expected - {node}:
            rule = ("ipproto", "tcp", "dport", _data_port(scene, other))
            cuts.enter_context(_network(scene).dropping(node, other, *rule))
        await scene.cluster.killed(*scene.cluster.pids(node).workers)
        await scene.pause(BLINK_S)
        at = await scene.kill_servers(node)
        lost = _network(scene).dropped() - before
    return replace(_proven(f"{node} died without its backups", lost), since=at, kills=1)


async def blink(scene: Scene) -> Done:
    """All data packets of a node are lost for a moment: late, not lost, to whoever waits."""
    node, others = _pick(scene)
    with ExitStack() as cuts:
        before = _cut(scene, cuts, [(node, other) for other in others], both_ways=True)
        await scene.pause(BLINK_S)
        lost = _network(scene).dropped() - before
    return _proven(f"{node} was cut off from the other nodes for {BLINK_S} s", lost)


async def slow_network(scene: Scene) -> Done:
    node, _ = _pick(scene)
    with _network(scene).slow(node, SLOW_RATE):
        await scene.pause(CUT_S)
        waited = _network(scene).held_up(node)
    if not waited:
        raise ChaosError(f"{SLOW_RATE} were enough for {node}")
    return done(f"{node} got no more than {SLOW_RATE} for {CUT_S} s, packets waited {waited} times")


# -- towards etcd, on any machine -----------------------------------------------------------------


async def cut_etcd(scene: Scene) -> Done:
    """A node does not reach etcd past its lease, while it reaches every other node."""
    node = scene.any_node()
    links = scene.cluster.links[node]
    await links.becomes(Weather.SILENT)
    try:
        await scene.until_replaced(node)
    finally:
        await links.becomes(Weather.FAIR)
    return done(f"{node} did not reach etcd until it was dropped")


async def deaf_to_etcd(scene: Scene) -> Done:
    """What a node says reaches etcd, and no answer comes back, past its lease by its own clock."""
    node = scene.any_node()
    links = scene.cluster.links[node]
    daemon = scene.cluster.local.nodes[node]
    mark = daemon.log.stat().st_size
    await links.becomes(Weather.DEAF)
    try:
        await scene.cluster.until(
            lambda: b"not a member any more" in daemon.log.read_bytes()[mark:],
            f"{node} gives up its lease",
        )
    finally:
        await links.becomes(Weather.FAIR)
    return done(f"{node} heard nothing of etcd until it gave up its lease")


async def reset_etcd_links(scene: Scene) -> Done:
    node = scene.any_node()
    count = await scene.cluster.links[node].reset()
    if not count:
        raise ChaosError(f"{node} has no connection to etcd")
    return done(f"{count} connections of {node} to etcd were reset")


async def late_etcd(scene: Scene) -> Done:
    return await _bad_weather(scene, Weather.LATE)


async def slow_etcd(scene: Scene) -> Done:
    return await _bad_weather(scene, Weather.SLOW)


async def sliced_etcd(scene: Scene) -> Done:
    return await _bad_weather(scene, Weather.SLICED)


async def _bad_weather(scene: Scene, weather: Weather) -> Done:
    node = scene.any_node()
    links = scene.cluster.links[node]
    before = links.carried
    await links.becomes(weather)
    try:
        await scene.pause(CUT_S)
    finally:
        await links.becomes(Weather.FAIR)
    if links.carried == before:
        raise ChaosError(f"nothing went between {node} and etcd")
    return done(f"etcd was {weather.value} to {node} for {CUT_S} s")


def _pick(scene: Scene) -> tuple[str, list[str]]:
    nodes = sorted(scene.cluster.expected)
    scene.random.shuffle(nodes)
    return nodes[0], nodes[1:]


def _network(scene: Scene) -> Network:
    assert scene.cluster.network is not None
    return scene.cluster.network


def _cut(scene: Scene, cuts: ExitStack, pairs: list[tuple[str, str]], *, both_ways: bool) -> int:
    """Drop all between the pairs; how many packets were dropped before."""
    network = _network(scene)
    before = network.dropped()
    for source, target in pairs:
        cuts.enter_context(network.dropping(source, target))
        if both_ways:
            cuts.enter_context(network.dropping(target, source))
    return before


def _data_port(scene: Scene, node: str) -> str:
    (server,) = scene.cluster.view.nodes[NodeId(node)].servers
    return str(Address.parse(server.tcp).port)


def _proven(text: str, lost: int) -> Done:
    if lost <= 0:
        raise ChaosError(f"the fault did not happen, no packet was lost: {text}")
    return done(f"{text}: {lost} packets lost")
