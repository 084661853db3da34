"""What the HTTP API refuses: with the field, the limit and the near name, and nothing changed."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from elasticps.api.plugins import STRATEGIES, discover
from tests.integration.cluster.acts import SCRIPTS, Cluster

pytestmark = pytest.mark.asyncio(loop_scope="package")

MIB = 1 << 20
STRATEGY_NAMES = ", ".join(plugin.name for plugin in discover(STRATEGIES))
JOB: dict[str, Any] = {"argv": ["train.py"], "cwd": str(SCRIPTS)}


@pytest_asyncio.fixture(loop_scope="package")
async def api(shared_cluster: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(shared_cluster.url) as session:
        yield session


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def ended_job(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a job that has ended."""
    script = tmp_path_factory.mktemp("ended") / "ended.py"
    script.write_text("raise SystemExit(1)")
    job = await shared_cluster.submit(script, max_workers=1)
    await job.ended()
    await job.is_cleared()
    return job.name


@pytest_asyncio.fixture(loop_scope="package", autouse=True)
async def nothing_changes(shared_cluster: Cluster, ended_job: str) -> AsyncIterator[None]:
    """What is refused leaves no key behind, and the daemon lives."""
    root = shared_cluster.local.keys.root
    before = await shared_cluster.local.store.list(root)
    yield
    after = await shared_cluster.local.store.list(root)
    assert [item.key for item in after.items] == [item.key for item in before.items]
    assert await shared_cluster.get("/healthz") == {"ok": True}


async def refused(answer: aiohttp.ClientResponse, status: int) -> dict[str, Any]:
    assert answer.status == status, await answer.text()
    assert answer.content_type == "application/json"
    error = (await answer.json())["error"]
    assert "Traceback" not in json.dumps(error)
    return dict(error)


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", "nodes/n0/drain", "node"),
        ("DELETE", "nodes/n0/drain", "node"),
        ("POST", "nodes/..%2f..%2fmeta/drain", "node"),
        ("GET", "jobs/nonesuch", "job"),
        ("POST", "jobs/nonesuch/cancel", "job"),
        ("GET", "jobs/nonesuch/logs", "job"),
    ],
)
async def test_unknown_name_is_not_found(
    api: aiohttp.ClientSession, method: str, path: str, field: str
) -> None:
    async with api.request(method, f"/api/v1/{path}") as answer:
        error = await refused(answer, 404)
    assert error["field"] == field


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": ""}]
)
async def test_what_a_web_page_could_send_is_refused(
    api: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with api.post("/api/v1/jobs", headers=headers, data="{}") as answer:
        await refused(answer, 403)


async def test_dashboard_may_ask_what_other_pages_may_not(
    api: aiohttp.ClientSession, shared_cluster: Cluster
) -> None:
    async with api.get("/") as answer:
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    own = {"Origin": shared_cluster.url}
    async with api.get("/api/v1/whoami", headers=own) as answer:
        assert await answer.json() == {"role": "admin", "name": None}
    async with api.post("/api/v1/jobs", headers=own, data="{}") as answer:
        await refused(answer, 400)  # for what it says, not for who says it
    stranger, port = "http://127.0.0.1:1", shared_cluster.url.rpartition(":")[2]
    for headers in (
        {"Origin": stranger},
        {"Origin": shared_cluster.url.replace("http:", "https:")},
        {"Origin": "null"},
        {"Origin": f"http://evil.example:{port}", "Host": f"evil.example:{port}"},
    ):
        async with api.post("/api/v1/jobs", headers=headers, data="{}") as answer:
            await refused(answer, 403)


async def test_near_name_is_told(api: aiohttp.ClientSession) -> None:
    async with api.post("/api/v1/nodes/n1x/drain") as answer:
        error = await refused(answer, 404)
    assert error["what"] == "there is no node n1x"
    assert error["limit"] == "n1, n2"
    assert error["hint"] == "did you mean n1?"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "truncated"),
        (b"not json", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "object"),
        (b"[" * 100_000 + b"]" * 100_000, ""),
        (b'{"cwd": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", ""),
        (json.dumps(JOB | {"replica": 1}), "replica"),
        (json.dumps(JOB | {"start_workers": "two"}), "start_workers"),
        (json.dumps(JOB | {"argv": "train.py --epochs 1"}), "argv"),
        (json.dumps(JOB | {"env": {"A": 1}}), "env"),
        (json.dumps({"cwd": str(SCRIPTS)}), "argv"),
    ],
    ids=[
        "cut-off",
        "no-json",
        "no-text",
        "list",
        "deep-lists",
        "deep-objects",
        "unknown-field",
        "wrong-type",
        "argv-as-text",
        "number-in-env",
        "no-argv",
    ],
)
async def test_body_that_is_no_job_is_refused(
    api: aiohttp.ClientSession, body: bytes | str, word: str
) -> None:
    async with api.post("/api/v1/jobs", data=body) as answer:
        error = await refused(answer, 400)
    assert error["field"] == "body"
    assert word in error["what"]


@pytest.mark.parametrize(
    ("wish", "field", "limit"),
    [
        ({"replicas": 8}, "replicas", "1 to 7"),
        ({"replicas": 0}, "replicas", "1 to 7"),
        ({"min_insync": 0}, "min_insync", "1 to 2"),
        ({"min_insync": 3}, "min_insync", "1 to 2"),
        ({"consistency": "strict"}, "consistency", "sync, bounded, async"),
        ({"staleness": 2}, "staleness", "0 unless the consistency is bounded"),
        ({"staleness": -1, "consistency": "bounded"}, "staleness", None),
        ({"staleness": 0.5, "consistency": "bounded"}, "body", None),
        ({"backup_workers": 1}, "backup_workers", None),
        ({"backup_workers": -1}, "backup_workers", None),
        (
            {"backup_workers": 1, "start_workers": 2, "consistency": "async"},
            "backup_workers",
            "0 unless the consistency is sync",
        ),
        ({"checkpoint_every": -1}, "checkpoint_every", None),
        ({"checkpoint_every": 5}, "checkpoint_dir", "an absolute path"),
        ({"checkpoint_dir": "saved"}, "checkpoint_dir", None),
        ({"resume": "saved"}, "resume", None),
        ({"resume": "/a/../b"}, "resume", None),
        ({"resume": "/a\0"}, "resume", None),
        ({"block_bytes": 4095}, "block_bytes", f"4096 to {128 * MIB}"),
        ({"block_bytes": 128 * MIB + 1}, "block_bytes", f"4096 to {128 * MIB}"),
        ({"start_workers": 0}, "start_workers", "1 to 10000"),
        ({"start_workers": 10**6}, "start_workers", "1 to 10000"),
        ({"start_workers": 3, "max_workers": 2}, "max_workers", "3 to 10000"),
        ({"strategy": "telepathy"}, "strategy", STRATEGY_NAMES),
        ({"name": "Grand"}, "name", None),
        ({"name": "<script>"}, "name", None),
        ({"name": "a\r\nb"}, "name", None),
        ({"name": "x" * 41}, "name", None),
        ({"argv": []}, "argv", None),
        ({"argv": ["train.py", "a\0b"]}, "argv", None),
        ({"argv": ["nonesuch.py"]}, "argv", None),
        ({"argv": ["."]}, "argv", None),
        ({"argv": ["x" * 5000]}, "argv", None),
        ({"cwd": "relative"}, "cwd", None),
        ({"cwd": "/nonesuch"}, "cwd", None),
        ({"cwd": "/tmp\0"}, "cwd", None),
        ({"env": {"A=B": "1"}}, "env", None),
        ({"env": {"": "1"}}, "env", None),
        ({"env": {"A": "1\0"}}, "env", None),
        ({"env": {"PYTHONSTARTUP": "\ud800"}}, "body", None),
    ],
    ids=lambda item: json.dumps(item)[:40] if isinstance(item, dict) else "",
)
async def test_value_that_no_job_can_have_is_refused_and_named(
    api: aiohttp.ClientSession, wish: dict[str, Any], field: str, limit: str | None
) -> None:
    async with api.post("/api/v1/jobs", json=JOB | wish) as answer:
        error = await refused(answer, 400)
    assert error["field"] == field
    if limit is not None:
        assert error["limit"] == limit


async def test_job_name_that_is_taken_is_refused(
    api: aiohttp.ClientSession, ended_job: str
) -> None:
    async with api.post("/api/v1/jobs", json=JOB | {"name": ended_job}) as answer:
        error = await refused(answer, 400)
    assert (error["what"], error["field"]) == (f"a job named {ended_job} exists", "name")


async def test_near_job_is_told(api: aiohttp.ClientSession, ended_job: str) -> None:
    async with api.get(f"/api/v1/jobs/{ended_job}x") as answer:
        error = await refused(answer, 404)
    assert error["hint"] == f"did you mean {ended_job}?"


async def test_body_beyond_a_mebibyte_is_refused(api: aiohttp.ClientSession) -> None:
    body = json.dumps(JOB | {"env": {"PADDING": "x" * MIB}})
    async with api.post("/api/v1/jobs", data=io.BytesIO(body.encode())) as answer:
        error = await refused(answer, 413)
    assert "Large" in error["what"]


async def test_wrong_method_and_unknown_path_are_answered_in_json(
    api: aiohttp.ClientSession,
) -> None:
    async with api.delete("/api/v1/jobs") as answer:
        await refused(answer, 405)
    async with api.get("/api/v1/nonesuch") as answer:
        await refused(answer, 404)
