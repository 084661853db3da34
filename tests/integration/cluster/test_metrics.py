"""What Prometheus sees of a real cluster, in the order of one story: a server dies, then a node."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from elasticps.daemon.metrics.catalogue import CATALOGUE, PREFIX, Kind
from elasticps.store import EmbeddedEtcd, StoreConfig
from tests.integration.cluster.acts import (
    LOOK_S,
    WAIT_S,
    Cluster,
    Training,
    kill,
    settled,
    started,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

DRAINING = "draining or leaving"
SILENT = "etcd does not answer"
UNREGISTERED = "not registered in the cluster"
NODES = ("n1", "n2", "n3")
Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Scrape:
    """One answer of ``GET /metrics``."""

    text: str

    @property
    def samples(self) -> dict[Key, float]:
        families = text_string_to_metric_families(self.text)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        return sum(
            value
            for (sample, own), value in self.samples.items()
            if sample == PREFIX + name and labels.items() <= dict(own).items()
        )

    @property
    def counters(self) -> dict[Key, float]:
        """All that must never fall."""
        ends = ("_total", "_count", "_sum", "_bucket")
        return {key: value for key, value in self.samples.items() if key[0].endswith(ends)}


class Scraper:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def answer(self, node: str, path: str, **headers: str) -> tuple[int, str, Any]:
        url = self.cluster.local.nodes[node].http
        async with aiohttp.ClientSession(url) as session, session.get(path, headers=headers) as got:
            return got.status, await got.text(), got.headers["Content-Type"]

    async def scrape(self, node: str) -> Scrape:
        status, text, _ = await self.answer(node, "/metrics")
        assert status == 200, text
        return Scrape(text)

    async def until(self, node: str, found: Callable[[Scrape], object], what: str) -> Scrape:
        deadline = time.monotonic() + WAIT_S
        while not found(scrape := await self.scrape(node)):
            assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}\n{scrape.text}"
            await asyncio.sleep(LOOK_S)
        return scrape

    async def unready(self, node: str) -> dict[str, float]:
        """The reasons why the node is not ready, and for how many seconds they have held."""
        status, text, _ = await self.answer(node, "/readyz")
        told = json.loads(text)
        assert (status, told["ready"]) == ((503, False) if told["reasons"] else (200, True))
        for row in told["reasons"]:
            assert abs(time.time() - row["for_s"] - row["since_unix_s"]) < 5
        return {row["reason"]: row["for_s"] for row in told["reasons"]}

    async def until_unready(self, node: str, *reasons: str) -> dict[str, float]:
        deadline = time.monotonic() + WAIT_S
        while (found := await self.unready(node)).keys() != set(reasons):
            assert time.monotonic() < deadline, f"{node} tells {found}, not {reasons}"
            await asyncio.sleep(LOOK_S)
        return found

    async def leader(self) -> str:
        return await self.cluster.until(
            lambda status: next((each.node for each in status.nodes if each.leader), None),
            "somebody leads",
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd() -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd() as etcd:
        yield etcd


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def metrics(
    etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scraper]:
    config = StoreConfig(endpoints=(etcd.endpoint,))
    directory = tmp_path_factory.mktemp("scraped-cluster")
    async with started(3, directory, etcd=config, drain_timeout_s=3600) as cluster:
        yield Scraper(cluster)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def job(metrics: Scraper) -> Training:
    job = await metrics.cluster.train(start_workers=3, audit=True)
    await job.is_trained_by(*NODES)
    await job.until(whole, "has two copies of each block")
    return job


def whole(job: Any) -> bool:
    return settled(job) and job.under_replicated == 0


AMONG_WORKERS = {  # who exchange nothing with each other in this job
    "worker_peer_sent_bytes_total",
    "worker_peer_received_bytes_total",
}
MAY_BE_EMPTY = {
    "staleness_rounds",  # another node leads the ledger
    "certificate_expiry_timestamp_seconds",  # there are none
    *AMONG_WORKERS,
}


async def test_every_metric_is_exported_by_the_rules_and_no_other(
    metrics: Scraper, job: Training
) -> None:
    _, text, content_type = await metrics.answer(await metrics.leader(), "/metrics")
    assert content_type.startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    told = {metric.full_name.removesuffix("_total"): metric for metric in CATALOGUE.values()}
    own = {name: each for name, each in families.items() if name.startswith(PREFIX)}
    assert own.keys() == told.keys()
    assert all(name.startswith((PREFIX, "process_")) for name in families)
    for name, family in own.items():
        metric = told[name]
        assert family.documentation == metric.help
        assert family.type == metric.kind.value
        assert family.samples or metric.name in MAY_BE_EMPTY
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample
            assert (metric.kind is Kind.COUNTER) == sample.name.endswith("_total")
    lines = text.splitlines()
    assert len(lines) == len(set(lines))


async def test_openmetrics_is_spoken_to_who_asks_for_it(metrics: Scraper, job: Training) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    _, text, content_type = await metrics.answer("n1", "/metrics", Accept=accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    units = {family.name: family.unit for family in openmetrics_families(text)}
    assert units["elasticps_apply_seconds"] == "seconds"
    assert units["elasticps_pushed_bytes"] == "bytes"
    for strange in ("text/plain;version=x", "a/b, ;;,", "*/*"):
        status, _, content_type = await metrics.answer("n1", "/metrics", Accept=strange)
        assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")


async def test_a_training_job_is_counted_on_every_node(metrics: Scraper, job: Training) -> None:
    for node in NODES:
        first = await metrics.until(
            node, lambda scrape: scrape.get("pushes_total", job_name=job.name) > 0, "pushes come"
        )
        await job.goes_on(5)
        second = await metrics.until(
            node,
            lambda scrape, first=first: (
                scrape.get("pushes_total", job_name=job.name)
                > first.get("pushes_total", job_name=job.name)
            ),
            "more pushes come",
        )
        for name in ("pushed_bytes_total", "worker_pushed_bytes_total", "worker_rounds_total"):
            assert second.get(name, job_name=job.name) > 0, (node, name)
        assert second.get("received_bytes_total", transport="unix") > 0
        assert second.get("sent_bytes_total") > 0
        assert second.get("apply_seconds_count", job_name=job.name) > 0
        assert second.get("blocks", job_name=job.name, role="primary") > 0
        assert second.get("workers", job_name=job.name) == 1
        assert second.get("etcd_request_seconds_count") > 0
        assert second.get("loop_lag_seconds_count") > 0
        assert second.get("ready") == second.get("has_leader") == 1
        assert second.get("nonfinite_gradients_total") == 0
        fallen = [key for key, was in first.counters.items() if second.counters[key] < was]
        assert fallen == []
    everywhere = [await metrics.scrape(node) for node in NODES]
    assert sum(each.get("leader") for each in everywhere) == 1
    assert sum(each.get("rounds_total", job_name=job.name) for each in everywhere) > 0
    led = sum(each.get("blocks", job_name=job.name, role="primary") for each in everywhere)
    leader = await metrics.scrape(await metrics.leader())
    assert led == leader.get("job_blocks", job_name=job.name)
    assert leader.get("job_state", job_name=job.name, state="RUNNING") == 1
    assert leader.get("job_state", job_name=job.name) == 1
    assert leader.get("job_workers", job_name=job.name) == leader.get("nodes") == 3
    assert leader.get("under_replicated_blocks", job_name=job.name) == 0


async def test_dashboard_asks_for_what_the_cluster_tells(metrics: Scraper, job: Training) -> None:
    told: set[str] = set()
    for node in NODES:
        told |= {name for name, _ in (await metrics.scrape(node)).samples}
    board = Path(__file__).parents[3] / "docs" / "grafana" / "elasticps.json"
    asked = set(re.findall(r"\b(?:elasticps|process)_[a-z0-9_]+", board.read_text()))
    assert len(asked) > 30
    assert asked <= told | {PREFIX + name for name in AMONG_WORKERS}


async def test_a_node_that_is_drained_is_not_ready_and_says_since_when(metrics: Scraper) -> None:
    assert await metrics.unready("n1") == {}
    await metrics.cluster.drain("n1", stay=True)
    first = await metrics.until_unready("n1", DRAINING)
    later = await metrics.unready("n1")
    assert later[DRAINING] > first[DRAINING] >= 0
    assert (await metrics.scrape("n1")).get("ready") == 0
    assert await metrics.unready("n2") == {}
    await metrics.cluster.undrain("n1")
    await metrics.until_unready("n1")


@pytest.mark.long
async def test_a_node_whose_etcd_is_silent_is_not_ready_and_then_no_member(
    metrics: Scraper, etcd: EmbeddedEtcd, job: Training
) -> None:
    await job.until(whole, "has two copies of each block")
    failures = (await metrics.scrape("n1")).get("etcd_failures_total")
    os.kill(etcd.pid, signal.SIGSTOP)
    try:
        told = await metrics.until_unready("n1", SILENT, UNREGISTERED)
        assert told[SILENT] > told[UNREGISTERED] >= 0
        status, _, _ = await metrics.answer("n1", "/healthz")
        assert status == 200
        silent = await metrics.scrape("n1")
        assert silent.get("etcd_silence_seconds") > 1
        assert silent.get("etcd_failures_total") > failures
    finally:
        os.kill(etcd.pid, signal.SIGCONT)
    for node in NODES:
        await metrics.until_unready(node)
    await job.is_trained_by(*NODES)
    await job.until(whole, "has two copies of each block again")


@pytest.mark.long
async def test_counters_do_not_fall_when_the_shard_server_is_started_again(
    metrics: Scraper, job: Training
) -> None:
    before = await metrics.scrape("n2")
    leader = await metrics.leader()
    failovers = (await metrics.scrape(leader)).get("failovers_total", cause="server_died")

    kill(await metrics.cluster.shard_server_pid("n2"))

    seen = await metrics.until(
        "n2",
        lambda scrape: (
            scrape.get("shard_server_starts_total") == before.get("shard_server_starts_total") + 1
        ),
        "another shard server is up",
    )
    await job.until(whole, "has two copies of each block again")
    await job.goes_on()
    after = await metrics.until(
        "n2",
        lambda scrape: (
            scrape.get("apply_seconds_count", job_name=job.name)
            > before.get("apply_seconds_count", job_name=job.name)
        ),
        "the new server counts on, of whichever role its blocks are",
    )
    for earlier, later in ((before, seen), (seen, after), (before, after)):
        fallen = [key for key, was in earlier.counters.items() if later.counters[key] < was]
        assert fallen == []
    counted = await metrics.until(
        leader,
        lambda scrape: scrape.get("failover_heal_seconds_count", cause="server_died") > 0,
        "the failover has healed",
    )
    assert counted.get("failovers_total", cause="server_died") == failovers + 1


async def test_a_killed_node_is_a_failover_that_the_leader_times(
    metrics: Scraper, job: Training
) -> None:
    leader = await metrics.leader()
    victim = next(node for node in NODES if node != leader)
    await metrics.until(
        victim,
        lambda scrape: scrape.get("blocks", job_name=job.name, role="primary") > 0,
        "it leads blocks: it may have been drained until now",
    )
    names = [
        "failovers_total",
        "failover_detect_seconds_count",
        "failover_promote_seconds_count",
        "failover_heal_seconds_count",
    ]
    before = await metrics.scrape(leader)

    metrics.cluster.local.kill(victim)

    after = await metrics.until(
        leader,
        lambda scrape: (
            scrape.get(names[-1], cause="node_died") > before.get(names[-1], cause="node_died")
        ),
        "all copies are back",
    )
    for name in names:
        grown = after.get(name, cause="node_died") - before.get(name, cause="node_died")
        assert grown == 1, name
    seconds = [name.replace("_count", "_sum") for name in names[1:]]
    detect, promote, heal = (
        after.get(name, cause="node_died") - before.get(name, cause="node_died") for name in seconds
    )
    assert 0 <= promote <= heal
    assert detect >= 0
    left = after.get("failovers_total", cause="left")
    assert left == before.get("failovers_total", cause="left")
    fallen = [key for key, was in before.counters.items() if after.counters.get(key, 0) < was]
    assert fallen == []
    await job.goes_on()
    assert after.get("lost_pushes", job_name=job.name) == 0


@pytest.mark.long
async def test_a_killed_leader_is_a_failover_that_the_next_leader_counts(
    metrics: Scraper, job: Training
) -> None:
    await metrics.cluster.add_node("n4")
    await job.until(whole, "has two copies of each block")
    status = await metrics.cluster.status()
    first = await metrics.leader()
    assert first in (await job.look()).blocks_by_node  # it has something to lose
    others = [node.node for node in status.nodes if node.node != first]
    before = {node: await metrics.scrape(node) for node in others}

    metrics.cluster.local.kill(first)
    await metrics.cluster.local.wait(first)

    second = await metrics.cluster.until(
        lambda status: next(
            (each.node for each in status.nodes if each.leader and each.node != first), None
        ),
        "another leads",
    )
    await metrics.until(
        second,
        lambda scrape: scrape.get("failover_promote_seconds_count") > 0,
        "it has made the failover",
    )
    grown = {
        node: (await metrics.scrape(node)).get("failovers_total")
        - before[node].get("failovers_total")
        for node in others
    }
    assert grown == {node: float(node == second) for node in others}
    await job.goes_on()
