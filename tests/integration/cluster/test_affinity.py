"""Where the blocks of a pipeline's stages are led: on the nodes that compute with them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import optim

from elasticps.core.blocks import Model, partition
from elasticps.core.ids import node_of
from elasticps.core.plan import Entry, decode_part
from elasticps.core.records import decode
from tests.integration.cluster.acts import (
    LOOK_S,
    SCRIPTS,
    WAIT_S,
    Cluster,
    Training,
    notes,
    started,
)
from tests.integration.cluster.scripts import placed

ROOT = str(Path(__file__).parents[3])
Notes = Mapping[str, list[dict[str, Any]]]


async def begun(
    cluster: Cluster, directory: Path, wish: str, width: int = placed.WIDTH, **wishes: Any
) -> Training:
    directory.mkdir()
    wishes = {"strategy": "model-parallel", "block_bytes": 4096, **wishes}
    job = await cluster.submit(
        SCRIPTS / "placed.py",
        directory / "goal",
        directory,
        wish,
        width,
        env={"PYTHONPATH": ROOT},
        **wishes,
    )
    return Training(cluster, job.name, directory)


async def leaders(job: Training) -> dict[str, set[str]]:
    """For each parameter, the nodes that lead its blocks, as etcd has the plan."""
    store, keys = job.cluster.local.store, job.cluster.local.keys
    listing = await store.list(keys.plan(job.name))
    entries: list[Entry] = []
    for item in sorted(listing.items, key=lambda item: item.key):
        entries += decode_part(item.value, item.mod_revision)
    described = await store.get(keys.job_model(job.name))
    if described is None or not entries:
        return {}
    model = decode(described.value, Model, described.key)
    found: dict[str, set[str]] = {}
    for block in partition(model):
        name = model.parameters[block.parameter].name
        found.setdefault(name, set()).add(node_of(entries[block.id].primary))
    return found


def stages(noted: Notes, world: int) -> dict[str, list[str]]:
    """The parameters of each node's stage, if the newest step of ``world`` workers tells them."""
    counted = {name: [row for row in rows if "round" in row] for name, rows in noted.items()}
    newest = {name.partition("-")[0]: rows[-1] for name, rows in counted.items() if rows}
    last = max((row["round"] for row in newest.values()), default=0)
    own = {node: row["own"] for node, row in newest.items() if row["round"] >= last - 1}
    return own if len(own) == world else {}


async def placement_follows(job: Training, world: int) -> dict[str, list[str]]:
    """Wait until each block is led where its stage computes, and nothing moves."""
    deadline = time.monotonic() + WAIT_S
    while True:
        own, led = stages(notes(job.directory), world), await leaders(job)
        wanted = {name: {node} for node, names in own.items() for name in names}
        if own and wanted == led and not (await job.look()).pending_moves:
            return own
        assert time.monotonic() < deadline, f"stages {own}\nled {led}"
        await asyncio.sleep(LOOK_S)


def check_losses(noted: Notes, gone: str, width: int = placed.WIDTH) -> None:
    """Each round's loss is that of one process which steps on the same samples.

    In the round in which a worker died its samples do not count, where it was begun anew without
    them; the loss that was told before that has them.
    """
    samples: dict[int, list[int]] = {}
    losses: dict[int, list[float]] = {}
    for rows in noted.values():
        for intent, counted in itertools.pairwise(rows):
            if "samples" in intent and "round" in counted:
                samples.setdefault(counted["round"], []).extend(intent["samples"])
                losses.setdefault(counted["round"], []).append(counted["loss"])
    broken_off = max(row["round"] for row in noted[gone] if "round" in row) + 1
    last = noted[gone][-1].get("samples", [])
    again = {*samples[broken_off + 1], *samples[broken_off + 2]}
    if last and not again.issuperset(last):  # it counted, which who is gone has not learned
        samples[broken_off] += last
        last = []
    data, local = placed.dataset(width), placed.layers(width)
    optimizer = optim.SGD(local.parameters(), **placed.OPTIONS)
    for at in range(1, max(samples) + 1):
        _, inputs, targets = data[samples[at]]
        optimizer.zero_grad()
        loss = placed.loss_of(local(inputs), targets)
        expected = [float(loss.detach())]
        if at == broken_off and last:
            _, more, wanted = data[samples[at] + last]
            expected.append(float(placed.loss_of(local(more), wanted).detach()))
        for told in losses[at]:
            assert min(abs(told - each) for each in expected) < 1e-5, f"round {at}"
        loss.backward()
        optimizer.step()


@pytest.mark.long
async def test_blocks_follow_their_stages_when_a_node_is_killed_and_when_one_joins(
    tmp_path: Path,
) -> None:
    """The job's losses are those of one process all the while."""
    async with started(3, tmp_path) as cluster:
        job = await begun(
            cluster, tmp_path / "job", "prefer", start_workers=3, max_workers=3, replicas=2
        )
        own = await placement_follows(job, 3)
        assert len(own) == 3
        noted = notes(job.directory)
        (gone,) = (name for name in noted if name.startswith("n3-"))
        moved = (await job.look()).movement.blocks

        cluster.local.kill("n3")
        own = await placement_follows(job, 2)
        assert set(own) == {"n1", "n2"}
        await job.goes_on(10)

        await cluster.add_node("n4")
        own = await placement_follows(job, 3)
        assert set(own) == {"n1", "n2", "n4"}
        await job.goes_on(10)
        assert await placement_follows(job, 3) == own
        assert (await job.look()).movement.blocks >= moved

        ended = await job.finish()
    assert (ended.state, ended.failure) == ("SUCCEEDED", None)
    check_losses(notes(job.directory), gone)


@pytest.mark.long
async def test_stages_that_one_node_has_no_room_for_wait_until_another_joins(
    tmp_path: Path,
) -> None:
    """Six layers of 1 MiB each, as a stage counts them: 4 MiB are room for three, and not for six.

    Nothing fails, and the losses are those of one process.
    """
    strategy, width = "model-parallel:memory=4", 300
    async with started(2, tmp_path) as cluster:
        job = await begun(
            cluster,
            tmp_path / "job",
            "prefer",
            width,
            strategy=strategy,
            block_bytes=65536,
            start_workers=2,
            max_workers=2,
            replicas=2,
        )
        await job.goes_on(5)
        (gone,) = (name for name in notes(job.directory) if name.startswith("n2-"))
        cluster.local.kill("n2")
        why = "waiting for another worker: no cut of 6 MiB of layers fits 1 stages"
        waiting = await job.until(lambda now: now if why in now.reason else None, f"says {why!r}")
        assert waiting.state == "RUNNING"

        await cluster.add_node("n3")
        await job.goes_on(5)
        assert why not in (await job.look()).reason
        assert set(await placement_follows(job, 2)) == {"n1", "n3"}
        ended = await job.finish()
    assert (ended.state, ended.failure) == ("SUCCEEDED", None)
    check_losses(notes(job.directory), gone, width)


async def foreign_bytes(job: Training, world: int) -> float:
    """What all workers together exchange with shards of other nodes, in a round, at rest."""
    since = await job.goes_on(3)
    until = await job.goes_on(8)
    rows = [row for rows in notes(job.directory).values() for row in rows if "round" in row]
    counted = [row for row in rows if since < row["round"] <= until and row["world"] == world]
    return sum(row["foreign"] for row in counted) / (until - since)


@pytest.mark.long
@pytest.mark.parametrize("replicas", [1, 2])
async def test_what_stages_exchange_with_shards_stays_on_their_nodes(
    tmp_path: Path, replicas: int, record_property: Callable[[str, object], None]
) -> None:
    """And where nobody wishes for that, most of it goes over the network."""
    model = sum(item.nbytes for item in placed.layers().parameters())
    per_round: dict[str, float] = {}
    async with started(2, tmp_path) as cluster:
        for wish in ("balanced", "prefer"):
            job = await begun(
                cluster, tmp_path / wish, wish, start_workers=2, max_workers=2, replicas=replicas
            )
            if wish == "prefer" and replicas > 1:
                await placement_follows(job, 2)
            else:
                await job.goes_on(10)
                await job.until(lambda now: not now.pending_moves, "is at rest")
            per_round[wish] = await foreign_bytes(job, 2)
            await job.finish()
    for wish, nbytes in per_round.items():
        record_property(f"{wish}_models_between_nodes_a_round", nbytes / model)
    assert per_round["balanced"] > 0.5 * model
    if replicas > 1:
        assert per_round["prefer"] == 0
    else:  # what a server leads is also all that it holds, and stays fair
        assert per_round["prefer"] < 0.7 * per_round["balanced"]
