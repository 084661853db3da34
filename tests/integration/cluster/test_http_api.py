"""The HTTP API as its users rely on it: once by a key, page by page, and as it documents itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from aetcd import rpc

from elasticps.cli import client
from elasticps.cli.answers import Submission
from elasticps.cli.client import Api
from elasticps.errors import PeerUnavailable
from tests.integration.cluster.acts import WAIT_S, Cluster
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="package")

PAGE = Path(__file__).parents[3] / "docs" / "http-api.md"


@pytest_asyncio.fixture(loop_scope="package")
async def api(shared_cluster: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """One that ends at once, under a name that no other test's has."""
    path = tmp_path / f"short-{secrets.token_hex(4)}.py"
    path.write_text("raise SystemExit(1)")
    return path


def job_of(script: Path, **more: Any) -> dict[str, Any]:
    return {"argv": [str(script)], "cwd": str(script.parent), "max_workers": 1, **more}


async def submit(
    session: aiohttp.ClientSession, url: str, job: dict[str, Any], key: str
) -> tuple[int, dict[str, Any], bool]:
    """The status, the answer, and whether it is said to be a repeated one."""
    async with session.post(
        f"{url}/api/v1/jobs", json=job, headers={"Idempotency-Key": key}
    ) as answer:
        repeated = answer.headers.get("Idempotency-Replayed") == "true"
        return answer.status, await answer.json(), repeated


async def jobs_of(cluster: Cluster, script: Path) -> list[str]:
    found = (await cluster.status()).jobs
    return [job.job for job in found if job.script == str(script)]


def urls(cluster: Cluster) -> list[str]:
    return [cluster.local.nodes[name].http for name in ("n1", "n2")]


# -- once


async def test_a_submission_that_is_sent_again_makes_no_second_job_whoever_is_asked(
    shared_cluster: Cluster, api: aiohttp.ClientSession, script: Path
) -> None:
    first, second = urls(shared_cluster)
    job, key = job_of(script), secrets.token_hex()
    assert (await submit(api, first, job, key))[0] == 201
    status, answer, repeated = await submit(api, first, job, key)
    elsewhere = await submit(api, second, job, key)
    assert (status, repeated) == (201, True)
    assert elsewhere == (201, answer, True)
    script.unlink()  # what is answered was decided then
    assert await submit(api, second, job, key) == elsewhere
    assert await jobs_of(shared_cluster, script) == [answer["job"]]
    async with api.get(f"{second}/api/v1/jobs/{answer['job']}") as found:
        assert found.status == 200


async def test_of_many_at_the_same_time_one_makes_the_job_and_all_get_its_answer(
    shared_cluster: Cluster, api: aiohttp.ClientSession, script: Path
) -> None:
    job, key = job_of(script), secrets.token_hex()
    answers = await asyncio.gather(
        *(submit(api, url, job, key) for url in urls(shared_cluster) for _ in range(8))
    )
    assert {status for status, _, _ in answers} == {201}
    assert len({json.dumps(answer) for _, answer, _ in answers}) == 1
    assert sum(not repeated for _, _, repeated in answers) == 1
    assert len(await jobs_of(shared_cluster, script)) == 1


async def test_another_body_under_the_same_key_is_refused_and_makes_nothing(
    shared_cluster: Cluster, api: aiohttp.ClientSession, script: Path
) -> None:
    key = secrets.token_hex()
    await submit(api, shared_cluster.url, job_of(script), key)
    status, answer, _ = await submit(api, urls(shared_cluster)[1], job_of(script, audit=True), key)
    assert status == 409
    assert answer["error"]["field"] == "Idempotency-Key"
    assert len(await jobs_of(shared_cluster, script)) == 1


async def test_what_was_refused_is_looked_at_again(
    shared_cluster: Cluster, api: aiohttp.ClientSession, script: Path
) -> None:
    key, job = secrets.token_hex(), job_of(script)
    text = script.read_text()
    script.unlink()
    assert (await submit(api, shared_cluster.url, job, key))[0] == 400
    script.write_text(text)
    status, _, repeated = await submit(api, shared_cluster.url, job, key)
    assert (status, repeated) == (201, False)


async def test_without_a_key_each_submission_is_a_job(
    shared_cluster: Cluster, api: aiohttp.ClientSession, script: Path
) -> None:
    names = []
    for _ in range(2):
        async with api.post(f"{shared_cluster.url}/api/v1/jobs", json=job_of(script)) as answer:
            names.append((await answer.json())["job"])
    assert names == [f"{script.stem}-1", f"{script.stem}-2"]
    assert await jobs_of(shared_cluster, script) == names


async def test_a_key_is_forgotten_after_a_day(
    shared_cluster: Cluster, api: aiohttp.ClientSession, script: Path
) -> None:
    store = shared_cluster.local.store
    before = {item.key for item in (await store.list(shared_cluster.local.keys.requests)).items}
    await submit(api, shared_cluster.url, job_of(script), secrets.token_hex())
    after = (await store.list(shared_cluster.local.keys.requests)).items
    (record,) = [item for item in after if item.key not in before]
    left = await store.endpoints.call(
        lambda link: link.lease.LeaseTimeToLive, rpc.LeaseTimeToLiveRequest(ID=record.lease)
    )
    assert left.grantedTTL == 24 * 3600
    assert str(script).encode() in record.value  # the answer


async def test_a_drain_that_was_taken_back_does_not_come_again_with_its_repetition(
    shared_cluster: Cluster, api: aiohttp.ClientSession
) -> None:
    path, key = "/api/v1/nodes/n2/drain", {"Idempotency-Key": secrets.token_hex()}
    answers = []
    for url in urls(shared_cluster):
        async with api.post(f"{url}{path}", json={"stay": True}, headers=key) as answer:
            answers.append((answer.status, await answer.json()))
        await shared_cluster.undrain("n2")
    assert answers[0] == answers[1]
    assert answers[0][0] == 202
    assert answers[0][1]["state"] in ("draining", "drained")
    assert await shared_cluster.local.store.get(shared_cluster.local.keys.drain("n2")) is None


async def test_a_checkpoint_that_is_asked_for_again_is_the_same_one(
    shared_cluster: Cluster, api: aiohttp.ClientSession, tmp_path: Path
) -> None:
    training = await shared_cluster.train(max_workers=1, checkpoint_dir=str(tmp_path / "saved"))
    await training.goes_on(1)
    asked = []
    for key in ("a", "a", "b"):
        async with api.post(
            f"{shared_cluster.url}/api/v1/jobs/{training.name}/checkpoint",
            headers={"Idempotency-Key": f"{training.name}-{key}"},
        ) as answer:
            assert answer.status == 202
            asked.append((await answer.json())["request"])
    assert asked[0] == asked[1] < asked[2]
    await training.cancel()


async def test_elasticps_submit_makes_one_job_though_the_answer_was_lost(
    shared_cluster: Cluster, script: Path
) -> None:
    port = urlsplit(shared_cluster.url).port
    assert port is not None
    async with Proxy(port) as proxy:
        proxy.swallow_answers()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "elasticps", "--api", f"http://{proxy.endpoint}", "submit"),
            *("--max-workers", "1", str(script)),
            cwd=script.parent,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await shared_cluster.until(
            lambda status: [job for job in status.jobs if job.script == str(script)],
            "the request is heard",
        )
        await proxy.answer_again()  # and cut what was open
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate()
    assert process.returncode == 0, err
    assert await jobs_of(shared_cluster, script) == [f"{script.stem}-1"]
    assert f"submitted {script.stem}-1" in out.decode()


async def test_a_submission_that_nobody_answers_ends_with_an_error(
    shared_cluster: Cluster, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "AGAIN_AFTER_S", (0.01, 0.01))
    port = urlsplit(shared_cluster.url).port
    assert port is not None
    async with Proxy(port) as proxy, Api(f"http://{proxy.endpoint}") as api:
        await proxy.cut()
        with pytest.raises(PeerUnavailable, match="cannot be reached"):
            await api.submit(Submission(argv=(str(script),), cwd="/", start_workers=1))
    assert not await jobs_of(shared_cluster, script)


# -- pages


async def test_pages_of_jobs_and_nodes_are_the_whole_list(
    shared_cluster: Cluster, api: aiohttp.ClientSession, script: Path
) -> None:
    for _ in range(3):
        await submit(api, shared_cluster.url, job_of(script), secrets.token_hex())
    for path, row in (("jobs", "job"), ("nodes", "node")):
        whole = await shared_cluster.get(f"/api/v1/{path}")
        assert whole["next"] is None
        names, after = [], ""
        while True:
            query = f"?limit=1&after={after}" if after else "?limit=1"
            page = await shared_cluster.get(f"/api/v1/{path}{query}")
            assert len(page[path]) == 1
            names += [each[row] for each in page[path]]
            after = page["next"]
            if after is None:
                break
        assert names == [each[row] for each in whole[path]]
        assert len(names) >= 2
    jobs = (await shared_cluster.get("/api/v1/jobs?active=true"))["jobs"]
    assert {each["state"] for each in jobs} <= {"PENDING", "RUNNING"}
    async with shared_cluster.api() as each:
        assert [node.node for node in await each.nodes()] == ["n1", "n2"]


# -- what it says of itself


async def test_the_document_is_served_and_names_what_is_answered(shared_cluster: Cluster) -> None:
    document = await shared_cluster.get("/api/v1/openapi.json")
    assert document["openapi"] == "3.1.0"
    status = await shared_cluster.get("/api/v1/status")
    schemas = document["components"]["schemas"]
    assert list(status) == list(schemas["ClusterRows"]["properties"])
    assert list(status["nodes"][0]) == list(schemas["NodeRow"]["properties"])
    if status["jobs"]:
        assert list(status["jobs"][0]) == list(schemas["JobRow"]["properties"])


async def test_the_examples_of_the_page_work_when_pasted(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", "\n".join(blocks)),
        cwd=tmp_path,
        env={**os.environ, "API": shared_cluster.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(WAIT_S):
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert text.count('"job":"my-first-job"') >= 2, text
    assert '"state":"CANCELLED"' in text, text


async def test_dashboard_may_ask_what_other_pages_may_not(
    api: aiohttp.ClientSession, shared_cluster: Cluster
) -> None:
    url = shared_cluster.url
    async with api.get(f"{url}/") as answer:
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    own = {"Origin": url, "Content-Type": "application/json"}
    async with api.get(f"{url}/api/v1/whoami", headers=own) as answer:
        assert await answer.json() == {"role": "admin", "name": None}
    async with api.post(f"{url}/api/v1/jobs", headers=own, data="{}") as answer:
        assert answer.status == 400  # for what it says, not for who says it
    port = url.rpartition(":")[2]
    for headers in (
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": url.replace("http:", "https:")},
        {"Origin": "null"},
        {"Origin": f"http://evil.example:{port}", "Host": f"evil.example:{port}"},
    ):
        async with api.post(f"{url}/api/v1/jobs", headers=own | headers, data="{}") as answer:
            assert answer.status == 403
