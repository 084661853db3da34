"""Jobs that train on two nodes, with built-in and third-party optimizers."""

from __future__ import annotations

import pytest
from elasticps_lion import Lion

from tests.integration.cluster.acts import Cluster
from tests.integration.cluster.conftest import Script
from tests.integration.cluster.scripts.train import trained_alone

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_job_on_two_nodes_equals_the_local_run_and_loses_no_push(
    shared_cluster: Cluster,
) -> None:
    job = await shared_cluster.train("--lr", 0.05, start_workers=2, audit=True)
    both = await job.is_trained_by("n1", "n2")
    assert set(both.blocks_by_node) == {"n1", "n2"}

    ended = await job.finish()

    assert (ended.state, ended.reason) == ("SUCCEEDED", "all workers finished")
    assert ended.round == job.goal
    alone = trained_alone(job.goal, lr=0.05)
    results = job.results()
    assert set(results) == {"n1", "n2"}
    for result in results.values():
        assert result["round"] == job.goal
        assert result["numbers"] == pytest.approx(alone, abs=1e-5)
    blocks = ended.blocks - 1  # the ledger takes no pushes
    assert ended.verdict.acknowledged == 2 * blocks * job.goal
    assert (ended.verdict.lost, ended.verdict.duplicated) == (0, 0)


@pytest.mark.long
async def test_job_trains_with_the_optimizer_of_a_third_party_package(
    shared_cluster: Cluster,
) -> None:
    job = await shared_cluster.train("--optimizer", "lion", "--lr", 1e-3, max_workers=1)

    ended = await job.finish()

    assert (ended.state, ended.failure) == ("SUCCEEDED", None)
    alone = trained_alone(job.goal, lr=1e-3, kind=Lion)
    (result,) = job.results().values()
    assert result["numbers"] == pytest.approx(alone, abs=1e-5)


async def test_unknown_optimizer_fails_the_job_and_the_near_name_is_told(
    shared_cluster: Cluster,
) -> None:
    job = await shared_cluster.train("--optimizer", "adamm", max_workers=1)

    ended = await job.ended()

    assert ended.state == "FAILED"
    assert "adamm" in ended.reason
    assert "did you mean adam" in ended.reason


async def test_workers_with_different_models_fail_the_job_and_the_difference_is_named(
    shared_cluster: Cluster, script: Script
) -> None:
    different = script("""
        import elasticps
        import torch

        with elasticps.join() as run:
            model = torch.nn.Linear(4, 2 if run.node == "n1" else 3)
            optimizer = run.optimizer(model, "sgd", lr=0.1)
            for _ in range(10):
                optimizer.step()
    """)
    job = await shared_cluster.submit(different, start_workers=2)

    ended = await job.ended()

    assert ended.state == "FAILED"
    assert "differs from that of the job's first worker" in ended.reason
    assert "field parameters" in ended.reason
    assert ended.failure is not None
    assert 'script.py", line 7' in ended.failure.traceback


@pytest.mark.long  # until a request carries many blocks
async def test_model_of_two_thousand_tensors_trains_on_two_nodes_as_in_one_process(
    shared_cluster: Cluster, script: Script
) -> None:
    many = script("""
        import copy

        import elasticps
        import torch

        torch.manual_seed(1)
        model = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(3)) for _ in range(2000))
        alone = copy.deepcopy(model)
        local = torch.optim.Adam(alone.parameters(), lr=0.05)
        with elasticps.join() as run:
            optimizer = run.optimizer(model, "adam", lr=0.05)
            for _ in range(2):
                for module, stepped in ((model, optimizer), (alone, local)):
                    stepped.zero_grad()
                    sum((i % 7 + 1) * p.square().sum() for i, p in enumerate(module)).backward()
                    stepped.step()
        for mine, its in zip(model, alone):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)
    """)
    job = await shared_cluster.submit(many, start_workers=2, replicas=1, audit=True)

    ended = await job.ended()

    assert (ended.state, ended.failure) == ("SUCCEEDED", None)
    assert (ended.round, ended.blocks) == (2, 2001)
    assert ended.verdict.acknowledged == 2 * 2000 * 2
    assert (ended.verdict.lost, ended.verdict.duplicated) == (0, 0)
