"""Scripts that end badly: the job says whose fault it was, and nothing of it is left."""

from __future__ import annotations

import pytest

from tests.integration.cluster.acts import Cluster
from tests.integration.cluster.conftest import Script
from tests.support.processes import runs, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_script_that_raises_fails_the_job_with_its_own_traceback_alone(
    shared_cluster: Cluster, script: Script
) -> None:
    raising = script("""
        def careless():
            return {}["missing"]

        careless()
    """)
    job = await shared_cluster.submit(raising)

    ended = await job.ended()

    assert ended.state == "FAILED"
    failure = ended.failure
    assert failure is not None
    assert failure.node in ("n1", "n2")
    assert failure.worker.startswith(f"{failure.node}.")
    assert ended.reason == f"worker {failure.worker}: KeyError: 'missing'"
    without_marks = [line for line in failure.traceback.splitlines() if line.strip(" ~^")]
    assert without_marks == [
        "Traceback (most recent call last):",
        f'  File "{raising}", line 5, in <module>',
        "    careless()",
        f'  File "{raising}", line 3, in careless',
        '    return {}["missing"]',
        "KeyError: 'missing'",
    ]
    assert await job.lines() == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys; sys.exit(3)", "the script exited with 3"),
        ("import sys; sys.exit('no data')", "the script exited with 'no data'"),
        ("import os; os._exit(4)", "exited with code 4"),
        ("print('trained alone')", "the script ended without calling elasticps.join()"),
        ("raise OSError('\\udcff')", "OSError: \\udcff"),
    ],
    ids=["exit-code", "exit-text", "hard-exit", "never-joins", "surrogate"],
)
async def test_script_that_ends_badly_fails_the_job_with_the_reason(
    shared_cluster: Cluster, script: Script, text: str, reason: str
) -> None:
    job = await shared_cluster.submit(script(text), max_workers=1)

    ended = await job.ended()

    assert ended.state == "FAILED"
    assert ended.failure is not None
    assert ended.failure.reason == reason


async def test_script_that_is_no_python_fails_the_job_and_shows_the_place(
    shared_cluster: Cluster, script: Script
) -> None:
    broken = script("first = 1\nif first\n    pass\n")
    job = await shared_cluster.submit(broken, max_workers=1)

    ended = await job.ended()

    assert ended.failure is not None
    assert ended.failure.reason.startswith("SyntaxError: expected ':'")
    assert f'File "{broken}", line 2' in ended.failure.traceback
    assert "elasticps" not in ended.failure.traceback
    assert "runpy" not in ended.failure.traceback


async def test_message_too_long_for_etcd_is_shortened_and_still_fails_the_job(
    shared_cluster: Cluster, script: Script
) -> None:
    job = await shared_cluster.submit(
        script("raise ValueError('first words ' + 4_000_000 * '\\0' + ' last words')"),
        max_workers=1,
    )

    ended = await job.ended()

    assert ended.state == "FAILED"
    assert ended.failure is not None
    for text in (ended.failure.reason, ended.failure.traceback):
        assert "first words" in text
        assert "characters ..." in text
        assert text.rstrip().endswith("last words")


async def test_worker_that_is_killed_over_and_over_is_given_up_with_a_reason(
    shared_cluster: Cluster, script: Script
) -> None:
    job = await shared_cluster.submit(
        script("import os; os.kill(os.getpid(), 9)"), max_workers=1, start_workers=1
    )

    ended = await job.ended()

    assert ended.state == "FAILED"
    assert ended.failure is not None
    assert ended.failure.reason == (
        "killed by SIGKILL (out of memory?); gave up after 5 restarts within 120 s"
    )
    await job.is_left_by_all()


async def test_cancelled_job_ends_although_its_script_ignores_sigterm(
    shared_cluster: Cluster, script: Script
) -> None:
    stubborn = script("""
        import signal, time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf")
        while True:
            time.sleep(60)
    """)
    job = await shared_cluster.submit(stubborn, max_workers=1)
    await job.prints("deaf")
    workers = await job.worker_pids()

    await job.cancel()

    ended = await job.ended()
    assert (ended.state, ended.reason) == ("CANCELLED", "cancelled by request")
    await until(lambda: not any(runs(pid) for pid in workers), timeout_s=60)
