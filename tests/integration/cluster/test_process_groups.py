"""Scripts for torchrun with DDP: each job meets at a port of its own, and a lost node is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from elasticps.core.jobs import GROUP_BROKEN
from tests.integration.cluster.acts import SCRIPTS, WAIT_S, Cluster, started
from tests.support.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="package")

TORCHRUN = "all-reduce:torchrun=true"


def notes(folder: Path) -> list[tuple[int, int]]:
    """The port and the step of each rank that has stepped."""
    rows = [path.read_text().split() for path in folder.glob("[0-9]")]
    return [(int(port), int(step)) for port, step in rows]


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_two_groups_train_at_once_and_a_node_that_is_lost_fails_both_with_the_reason(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    async with started(2, tmp_path) as cluster:
        jobs = []
        for folder in folders:
            folder.mkdir()
            jobs.append(
                await cluster.submit(
                    SCRIPTS / "group.py",
                    folder,
                    strategy=TORCHRUN,
                    start_workers=2,
                    max_workers=2,
                )
            )
        await until(lambda: all(len(notes(folder)) == 2 for folder in folders), timeout_s=WAIT_S)
        met = [{port for port, _ in notes(folder)} for folder in folders]
        assert [len(ports) for ports in met] == [1, 1]
        assert met[0] != met[1]
        steps = [max(notes(folder)) for folder in folders]
        await until(
            lambda: all(
                max(notes(folder)) > before for folder, before in zip(folders, steps, strict=True)
            ),
            timeout_s=WAIT_S,
        )
        for job in jobs:
            assert len(await job.worker_pids("n1", "n2")) == 2

        cluster.local.kill("n2")
        for job in jobs:
            ended = await job.ended()
            assert ended.state == "FAILED"
            assert GROUP_BROKEN in (ended.reason or "")
            await job.is_left_by_all()


async def test_a_port_that_is_taken_where_rank_0_is_fails_the_job_and_is_told(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        job = await shared_cluster.submit(
            SCRIPTS / "group.py",
            tmp_path,
            strategy=TORCHRUN,
            start_workers=1,
            max_workers=1,
            env={"MASTER_PORT": str(port)},
        )
        ended = await job.ended()
    assert ended.state == "FAILED"
    assert f"port {port} of this machine" in (ended.reason or "")
    assert not notes(tmp_path)
