"""A job's end is its last worker's end in order, whoever ended before."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from tests.integration.cluster.acts import Cluster, kill
from tests.integration.cluster.conftest import Script

pytestmark = pytest.mark.asyncio(loop_scope="package")

TRAINING = """
    import os, sys, time
    from pathlib import Path
    import elasticps
    import torch

    here = Path(__file__).parent
    data = torch.utils.data.TensorDataset(torch.randn(60, 4))
    with elasticps.join() as run:
        model = torch.nn.Linear(4, 1)
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for (x,) in run.data(data, batch_size=6, epochs={epochs}):
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
            time.sleep(0.02)
"""


def training(epochs: int, *, step: str = "", end: str = "") -> str:
    """TRAINING, with what is done after each step and after the loop."""
    script = TRAINING.format(epochs=epochs)
    return script + textwrap.indent(step, 12 * " ") + textwrap.indent(end, 8 * " ")


async def test_job_of_which_one_left_early_goes_on_when_the_only_other_worker_is_killed(
    shared_cluster: Cluster, script: Script, tmp_path: Path
) -> None:
    step = """
if not run.is_main and run.round >= 5 and not (here / "left").exists():
    (here / "left").touch()
    sys.exit(0)
"""
    end = """
(here / "ended").write_text(str(run.round))
"""
    job = await shared_cluster.submit(script(training(20, step=step, end=end)), start_workers=2)
    await job.until(lambda look: "1 workers finished, 1 still" in look.reason, "has lost one")
    (pid,) = await job.worker_pids()
    at = await job.goes_on(2)
    assert at < 200

    kill(pid)

    ended = await job.ended()
    assert (ended.state, ended.reason) == ("SUCCEEDED", "all workers finished")
    assert (ended.round or 0) >= 200
    assert int((tmp_path / "ended").read_text()) >= 200


async def test_main_worker_that_is_killed_while_it_saves_has_its_save_done_by_another(
    shared_cluster: Cluster, script: Script, tmp_path: Path
) -> None:
    end = """
if run.is_main:
    if not (here / "saving").exists():
        (here / "saving").touch()
        print("saving", flush=True)
        time.sleep(1000)
    (here / "saved").write_text(str(run.round))
"""
    job = await shared_cluster.submit(script(training(2, end=end)), start_workers=2)
    await job.prints("saving")
    await job.until(lambda look: "1 workers finished, 1 still" in look.reason, "is nearly through")
    (pid,) = await job.worker_pids()

    kill(pid)

    ended = await job.ended()
    assert (ended.state, ended.reason) == ("SUCCEEDED", "all workers finished")
    assert (tmp_path / "saved").read_text() == "20"


@pytest.mark.parametrize(
    "who",
    [
        pytest.param("True", id="all", marks=pytest.mark.long),
        pytest.param("run.is_main", id="main"),
    ],
)
async def test_workers_that_leave_by_a_hard_exit_fail_the_job_and_are_told_what_to_do(
    shared_cluster: Cluster, script: Script, who: str
) -> None:
    step = f"""
if {who} and run.round >= 5:
    os._exit(0)
"""
    job = await shared_cluster.submit(script(training(100, step=step)), start_workers=2)

    ended = await job.ended()

    assert ended.state == "FAILED"
    assert ended.failure is not None
    assert ended.failure.reason.startswith("the script ended with code 0 without leaving the job")
    assert "`with elasticps.join() as run:`" in ended.failure.reason
    assert "run.close()" in ended.failure.reason
    assert (ended.verdict.acknowledged, ended.round) == (0, None)


async def test_exit_code_in_the_middle_of_the_training_fails_the_job_with_it(
    shared_cluster: Cluster, script: Script
) -> None:
    step = """
if run.round >= 5:
    sys.exit(3)
"""
    job = await shared_cluster.submit(script(training(100, step=step)), start_workers=2)

    ended = await job.ended()

    assert ended.state == "FAILED"
    assert ended.failure is not None
    assert ended.failure.reason == "the script exited with 3"


async def test_loader_process_that_is_killed_has_its_worker_started_anew_and_no_sample_lost(
    shared_cluster: Cluster, script: Script, tmp_path: Path
) -> None:
    training = script("""
        import json, os, signal
        from pathlib import Path
        import elasticps
        import torch

        here = Path(__file__).parent

        class Killed:
            def __len__(self):
                return 120

            def __getitem__(self, index):
                if index == 77:
                    try:
                        (here / "killed").touch(exist_ok=False)
                        os.kill(os.getpid(), signal.SIGKILL)
                    except FileExistsError:
                        pass
                return index

        with elasticps.join() as run:
            model = torch.nn.Linear(120, 1, bias=False)
            torch.nn.init.zeros_(model.weight)
            optimizer = run.optimizer(model, "sgd", lr=12.0)
            for samples in run.data(Killed(), batch_size=12, epochs=3, num_workers=1):
                optimizer.zero_grad()
                (-model.weight[0, samples].mean()).backward()
                optimizer.step()
            if run.is_main:
                (here / "counted").write_text(json.dumps(model.weight[0].tolist()))
    """)
    job = await shared_cluster.submit(training, max_workers=1)

    ended = await job.ended()

    assert (ended.state, ended.reason) == ("SUCCEEDED", "all workers finished")
    assert (tmp_path / "killed").exists()
    counted = json.loads((tmp_path / "counted").read_text())
    assert counted == pytest.approx([3.0] * 120, abs=1e-4)
    logged = shared_cluster.log_of("n1") + shared_cluster.log_of("n2")
    assert f"job={job.name} " in logged
    assert "killed: RuntimeError: DataLoader worker (pid" in logged
