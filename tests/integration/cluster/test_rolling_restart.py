"""``elasticps restart --rolling``: every daemon is started anew while a job trains."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from elasticps.security.files import write_new
from elasticps.security.tokens import Role
from tests.integration.cluster.acts import Cluster, Training, started
from tests.integration.cluster.secured import SecretFiles, secured_cluster, secured_etcd
from tests.support.etcd import EtcdServer

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(600)]

RESTART_S = 500


async def restart(cluster: Cluster, *argv: str, proof: Sequence[str] = ()) -> tuple[int, str]:
    """The command's exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "elasticps", "--api", cluster.url, *proof, "restart", *argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(os.environ),
    )
    async with asyncio.timeout(RESTART_S):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def restarts_every_daemon(cluster: Cluster, job: Training, *proof: str) -> None:
    """The leader last, in the same processes; then the job has all its copies again."""
    before = {node.node: node for node in (await cluster.status()).nodes}
    leader = (await cluster.status()).leader
    pids = {name: node.process.pid for name, node in cluster.local.nodes.items()}

    code, out = await restart(cluster, "--rolling", proof=proof)

    assert code == 0, out
    restarted = [line.split(":")[0] for line in out.splitlines() if ": restarted in " in line]
    assert sorted(restarted) == sorted(cluster.local.nodes)
    assert restarted[-1] == leader
    for name in restarted:  # a port of its own choice may be another now
        record = await cluster.record(name)
        assert record is not None
        assert record.incarnation != before[name].incarnation
        cluster.local.nodes[name].http = record.http
    assert {n: node.process.pid for n, node in cluster.local.nodes.items()} == pids
    look = await job.look()
    assert (look.under_replicated, look.pending_moves, look.state) == (0, 0, "RUNNING")


@pytest.fixture
def files(tmp_path: Path) -> SecretFiles:
    return SecretFiles(tmp_path / "secrets")


@pytest.fixture
def wary_etcd(tmp_path: Path, files: SecretFiles) -> Iterator[EtcdServer]:
    with ExitStack() as stack:
        yield secured_etcd(stack, tmp_path / "etcd", files)


@pytest.mark.long
async def test_rolling_restart_goes_on_with_its_token_from_node_to_node(
    tmp_path: Path, files: SecretFiles, wary_etcd: EtcdServer
) -> None:
    token = tmp_path / "token"
    write_new(token, files.tokens[Role.ADMIN].encode())
    proof = (f"--ca={files.authority.ca}", f"--token-file={token}")
    async with secured_cluster(2, tmp_path, wary_etcd, files) as cluster:
        job = await cluster.train()
        await job.goes_on()
        await restarts_every_daemon(cluster, job, *proof)
        await job.goes_on()


@pytest.mark.long
async def test_rolling_restart_restarts_every_daemon_and_loses_no_push(tmp_path: Path) -> None:
    async with started(3, tmp_path) as cluster:
        job = await cluster.train(start_workers=2, max_workers=2, audit=True)
        await job.goes_on()
        await restarts_every_daemon(cluster, job)
        ended = await job.finish()
        assert ended.state == "SUCCEEDED", ended.reason
        assert (ended.verdict.lost, ended.verdict.duplicated) == (0, 0)
        assert ended.verdict.unaudited == 0
        assert ended.verdict.acknowledged > 0


@pytest.mark.long
async def test_restart_is_refused_where_the_blocks_have_nowhere_to_go(tmp_path: Path) -> None:
    async with started(1, tmp_path) as cluster:
        job = await cluster.train()
        await job.goes_on()
        code, out = await restart(cluster, "--rolling")
        assert code == 2
        assert f"there is no other node for the blocks of {job.name}" in out
        assert (await restart(cluster, "n9"))[0] == 2
        assert (await restart(cluster))[0] == 2
        assert (await job.finish()).state == "SUCCEEDED"
