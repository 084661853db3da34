"""What a real cluster tells of itself while a job trains and a node is killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from elasticps.cli.frames import Frame, FrameParser
from tests.integration.cluster.acts import LOOK_S, WAIT_S, Cluster, started
from tests.integration.cluster.conftest import Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

FALLING = """
    import time

    import elasticps
    import torch
    from torch.utils.data import TensorDataset

    torch.manual_seed(0)
    inputs = torch.randn(60, 64)
    targets = inputs @ torch.randn(64, 64)
    with elasticps.join() as run:
        model = torch.nn.Linear(64, 64)
        optimizer = run.optimizer(model, "sgd", lr=0.3)
        for some, wanted in run.data(TensorDataset(inputs, targets), batch_size=12, epochs=10**6):
            optimizer.zero_grad()
            (model(some) - wanted).pow(2).mean().backward()
            optimizer.step()
            with torch.no_grad():  # of all samples: it falls from round to round
                run.log(loss=(model(inputs) - targets).pow(2).mean())
            time.sleep(0.1)
    """


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """n1, n2 and n3. A test that kills a node adds another."""
    async with started(3, tmp_path_factory.mktemp("events")) as cluster:
        yield cluster


class Stream:
    """A reader of one daemon's stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.frames: list[Frame] = []
        self._parser = FrameParser()

    @property
    def last_id(self) -> str | None:
        return self._parser.last_id

    @property
    def events(self) -> list[Json]:
        return [json.loads(frame.data) for frame in self.frames if frame.event == "event"]

    async def until(self, found: Callable[[list[Json]], object], what: str) -> None:
        """Read until the events so far are as wanted."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not found(self.events):
                    assert await self.read(), f"the stream ended before {what}"
        except TimeoutError:
            raise AssertionError(f"not told: {what}; told was {self.events}") from None

    async def read(self) -> bool:
        """Some more; False at the stream's end."""
        chunk = await self.response.content.readany()
        self.frames += self._parser.feed(chunk)
        return bool(chunk)


@asynccontextmanager
async def streaming(url: str, *, after: str | None = None, job: str = "") -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": after} if after else {}
    query = {"job": job} if job else {}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(f"{url}/api/v1/stream", headers=headers, params=query) as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Stream(response)


def kinds(events: list[Json], job: str) -> list[str]:
    return [event["kind"] for event in events if event["job"] in (None, job)]


def in_order(wanted: list[str], kinds: list[str]) -> bool:
    rest = iter(kinds)
    return all(kind in rest for kind in wanted)


async def curve(cluster: Cluster, series: str, url: str) -> list[Json]:
    return list((await cluster.get(f"/api/v1/jobs/{series}", url))["points"])


async def points_until(
    cluster: Cluster, series: str, url: str, found: Callable[[list[Json]], object]
) -> list[Json]:
    async with asyncio.timeout(WAIT_S):
        while not found(points := await curve(cluster, series, url)):
            await asyncio.sleep(LOOK_S)
    return points


async def test_killed_node_is_told_as_leave_failover_and_rebalance_and_its_curve_outlives_it(
    cluster: Cluster, script: Script
) -> None:
    job = await cluster.submit(script(FALLING), max_workers=3, block_bytes=4096)
    status = await job.is_trained_by("n1", "n2", "n3")
    await job.lies_on("n1", "n2", "n3")
    main = next(worker.node for worker in status.workers if worker.rank == 0)
    watcher = next(node for node in cluster.local.nodes.values() if node.name != main)
    # No worker of it is the main one, so that these are copies.
    copied = await points_until(
        cluster, f"{job.name}/series?local=1", watcher.http, lambda points: len(points) >= 5
    )

    async with streaming(watcher.http) as stream:
        await stream.read()
        cluster.signal(main, signal.SIGKILL)
        await stream.until(
            lambda events: in_order(
                ["leave", "failover", "rebalance", "rebalance"], kinds(events, job.name)
            ),
            "leave, failover, rebalance begun and done",
        )
        events = stream.events

    leave = next(event for event in events if event["kind"] == "leave")
    assert (leave["node"], leave["severity"]) == (main, "error")
    assert leave["what"].startswith(f"node {main} left: killed")
    failover = next(event for event in events if event["kind"] == "failover")
    assert f"{main} -> " in failover["what"]
    assert len(events) < 20

    at = await job.goes_on()
    points = await points_until(
        cluster, f"{job.name}/series", watcher.http, lambda points: points[-1]["round"] >= at
    )
    assert points[: len(copied)] == copied
    losses = [point["metrics"]["loss"] for point in points if point["metrics"]]
    assert losses[-1] < losses[len(losses) // 2] < losses[0]
    assert [point["unix_s"] for point in points] == sorted(point["unix_s"] for point in points)
    assert all(point["staleness"] == 0 for point in points)
    assert {point["workers"] for point in points} == {2, 3}
    assert any(point["pushed_bytes_per_s"] for point in points)
    await job.cancel()
    await job.ended()
    ended = await curve(cluster, f"{job.name}/series", watcher.http)
    assert ended[: len(points)] == points
    await cluster.add_node()


async def test_maps_counts_add_up_to_blocks_times_copies_and_rows_say_the_same(
    cluster: Cluster,
) -> None:
    job = await cluster.train(max_workers=1, replicas=2)
    names = sorted((await cluster.status()).nodes, key=lambda node: node.node)
    placed = await job.lies_on(*(node.node for node in names))

    for node in cluster.local.nodes.values():
        if node.process.returncode is not None:
            continue
        answer = await cluster.get(f"/api/v1/blocks?job={job.name}", node.http)
        held = [row["jobs"].get(job.name, {}) for row in answer["nodes"]]
        roles = Counter({role: sum(each.get(role, 0) for each in held) for role in held[0]})
        assert answer["blocks"] == placed.blocks
        assert (roles["primary"], roles["backup"], roles["learner"]) == (
            placed.blocks,
            placed.blocks,
            0,
        )
        by_node = {
            row["node"]: row["jobs"][job.name]["primary"] for row in answer["nodes"] if row["jobs"]
        }
        assert by_node == placed.blocks_by_node
    rows: list[Json] = []
    after = -1
    while after is not None:
        page = await cluster.get(f"/api/v1/blocks?job={job.name}&after={after}&limit=3")
        rows, after = rows + page["rows"], page["next"]
    assert [row["block"] for row in rows] == list(range(placed.blocks))
    assert rows[0]["name"] == "ledger"
    assert {row["name"] for row in rows[1:]} >= {"0.weight", "2.weight"}
    assert Counter(row["primary"] for row in rows) == placed.blocks_by_node
    one = names[0].node
    mine = await cluster.get(f"/api/v1/blocks?job={job.name}&node={one}")
    assert [row["block"] for row in mine["rows"]] == [
        row["block"] for row in rows if one in (row["primary"], *row["backups"])
    ]
    await job.cancel()
    await job.ended()


async def test_stream_resumes_where_it_was_cut_without_gap_or_repeat(cluster: Cluster) -> None:
    url = cluster.url
    async with streaming(url) as whole:
        await whole.read()
        start = whole.last_id
        pieces: list[str] = []
        after = start
        for _ in range(3):
            job = await cluster.train(max_workers=1)
            async with streaming(url, after=after) as piece:
                await piece.until(
                    lambda events, name=job.name: "running" if kinds(events, name) else None,
                    "the job",
                )
                pieces += [event["id"] for event in piece.events]
                after = piece.last_id
            await job.cancel()
            await job.ended()
        newest = (await cluster.get("/api/v1/events?limit=1", url))["next"]

        def is_told(events: list[Json]) -> bool:  # and perhaps what has happened since
            return any(event["id"] == newest for event in events)

        async with streaming(url, after=after) as piece:
            await piece.until(is_told, "all of the rest")
            pieces += [event["id"] for event in piece.events]
        pieces = pieces[: pieces.index(newest) + 1]
        await whole.until(is_told, "all of it")
        assert pieces == [event["id"] for event in whole.events][: len(pieces)]
    paged: list[str] = []
    while page := (await cluster.get(f"/api/v1/events?after={start}&limit=2", url)):
        if not page["events"]:
            break
        paged += [event["id"] for event in page["events"]]
        start = page["next"]
    assert paged[: len(pieces)] == pieces


async def test_another_daemon_gives_all_it_has_and_says_that_some_may_be_missing(
    cluster: Cluster,
) -> None:
    newest = (await cluster.get("/api/v1/events?limit=1"))["next"]
    other = [node.http for node in cluster.local.nodes.values() if node.http != cluster.url][-1]
    page = await cluster.get(f"/api/v1/events?after={newest}", other)
    assert page["missed"]
    async with streaming(other, after=newest) as stream:
        while not stream.frames:
            assert await stream.read()
    assert stream.frames[0].event == "missed"


async def test_checkpoint_is_told_by_daemons_that_have_no_worker_of_the_job(
    cluster: Cluster,
) -> None:
    kept = cluster.directory / "checkpoints"
    job = await cluster.train(max_workers=1, checkpoint_dir=str(kept), checkpoint_every=5)
    away = (await job.until(lambda job: job.workers, "has a worker"))[0].node
    others = [
        node.http
        for name, node in cluster.local.nodes.items()
        if name != away and node.process.returncode is None
    ]
    for url in others:
        async with streaming(url, job=job.name, after="00000000-0") as stream:
            await stream.until(
                lambda events: any(event["kind"] == "checkpoint" for event in events),
                "a checkpoint",
            )
            assert {event["job"] for event in stream.events} == {job.name}
    await job.cancel()
    await job.ended()


async def test_status_comes_unasked_and_a_stream_ends_with_its_daemon(
    cluster: Cluster,
) -> None:
    name = await cluster.add_node()
    async with streaming(cluster.local.nodes[name].http) as stream:
        while not (told := [each.data for each in stream.frames if each.event == "status"]):
            assert await stream.read()
        assert json.loads(told[0])["cluster"] == cluster.local.keys.cluster
        cluster.signal(name, signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            while await stream.read():
                pass
        assert await cluster.exit_code(name) == 0


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("events?after=yesterday", "after"),
        ("events?limit=0", "limit"),
        ("events?limit=1001", "limit"),
        ("events?limit=many", "limit"),
        ("blocks?node=n1", "job"),
        ("jobs/nonesuch/series", "job"),
        ("blocks?job=nonesuch", "job"),
    ],
)
async def test_bad_question_names_its_field(cluster: Cluster, path: str, field: str) -> None:
    answer = await cluster.get(f"/api/v1/{path}")
    assert answer["error"]["field"] == field
