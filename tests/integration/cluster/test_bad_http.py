"""What the HTTP API refuses: a typed error with the field and the limit, and nothing changed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from tests.integration.cluster.acts import WAIT_S, Cluster
from tests.integration.cluster.bad_http_requests import (
    BODIES,
    HEADERS,
    JOB,
    JSON,
    METHODS,
    MIB,
    PATHS,
    TAKEN_KEY,
    VALUES,
    Row,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest_asyncio.fixture(loop_scope="package")
async def api(shared_cluster: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(shared_cluster.url) as session:
        yield session


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def ended_job(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a job that has ended; it came with TAKEN_KEY."""
    script = tmp_path_factory.mktemp("ended") / "ended.py"
    script.write_text("raise SystemExit(1)")
    submission = {"argv": [str(script)], "cwd": str(script.parent), "max_workers": 1}
    async with (
        aiohttp.ClientSession(shared_cluster.url) as session,
        session.post(
            "/api/v1/jobs", json=submission, headers={"Idempotency-Key": TAKEN_KEY}
        ) as answer,
    ):
        assert answer.status == 201, await answer.text()
        name = (await answer.json())["job"]
    job = shared_cluster.job(name)
    await job.ended()
    await job.is_cleared()
    return str(name)


@pytest_asyncio.fixture(loop_scope="package", autouse=True)
async def nothing_changes(shared_cluster: Cluster, ended_job: str) -> AsyncIterator[None]:
    """What is refused leaves etcd as it was and no traceback behind, and the daemons live."""

    async def stored() -> dict[str, bytes]:
        listing = await shared_cluster.local.store.list(shared_cluster.local.keys.root)
        return {item.key: item.value for item in listing.items}

    before = await stored()
    told = {name: len(shared_cluster.log_of(name)) for name in ("n1", "n2")}
    yield
    assert await stored() == before
    assert await shared_cluster.get("/healthz") == {"ok": True}
    for name, length in told.items():
        since = shared_cluster.log_of(name)[length:]
        assert "Traceback" not in since
        assert " ERROR " not in since


async def refused(answer: aiohttp.ClientResponse, status: int) -> dict[str, Any]:
    assert answer.status == status, await answer.text()
    assert answer.content_type == "application/json"
    assert "X-Evil" not in answer.headers
    document = await answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"what", "where", "field", "limit", "hint"}
    assert "Traceback" not in json.dumps(document)
    return dict(document["error"])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "row", [*BODIES, *VALUES, *HEADERS, *PATHS, *METHODS], ids=lambda row: row.name
)
async def test_bad_request_is_refused_by_the_name_of_what_is_wrong(
    api: aiohttp.ClientSession, row: Row
) -> None:
    data = io.BytesIO(row.body.encode() if isinstance(row.body, str) else row.body or b"")
    async with api.request(
        row.method, f"/api/v1/{row.path}", data=data, headers=row.headers
    ) as answer:
        error = await refused(answer, row.status)
        allowed = answer.headers.get("Allow", "")
    assert error["field"] == row.names
    assert row.word in error["what"]
    if row.limit is not None:
        assert row.limit in error["limit"]
    if row.status == 405:
        assert sorted(allowed.replace(",", " ").split()) == error["limit"].split(", ")


@pytest.mark.bad_input
async def test_script_by_a_link_out_of_its_folder_is_refused(
    api: aiohttp.ClientSession, tmp_path: Path
) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.py").write_text("")
    (tmp_path / "inside" / "train.py").symlink_to(tmp_path / "outside.py")
    (tmp_path / "inside" / "folder").symlink_to("/etc")
    for script in ("train.py", "folder/passwd"):
        job = {"argv": [script], "cwd": str(tmp_path / "inside")}
        async with api.post("/api/v1/jobs", json=job) as answer:
            error = await refused(answer, 400)
        assert (error["field"], error["limit"]) == ("argv", "a script in cwd, or an absolute path")


@pytest.mark.bad_input
async def test_body_without_a_length_is_bounded_too(api: aiohttp.ClientSession) -> None:
    endless = io.BytesIO(json.dumps(JOB | {"env": {"PADDING": "x" * MIB}}).encode())
    async with api.post("/api/v1/jobs", data=endless, headers=JSON) as answer:
        assert (await refused(answer, 413))["field"] == "body"


async def test_near_name_is_told(api: aiohttp.ClientSession) -> None:
    async with api.post("/api/v1/nodes/n1x/drain") as answer:
        error = await refused(answer, 404)
    assert error["what"] == "there is no node n1x"
    assert error["limit"] == "n1, n2"
    assert error["hint"] == "did you mean n1?"


@pytest.mark.bad_input
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


# -- what no client library would send


async def said(cluster: Cluster, request: bytes) -> bytes:
    """All that is answered until the daemon closes the connection."""
    url = urlsplit(cluster.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(request)
        async with asyncio.timeout(WAIT_S):
            return await reader.read()
    finally:
        writer.close()


def posting(*headers: str, content: bytes = b"") -> bytes:
    head = ["POST /api/v1/jobs HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*head, *headers, "", ""]).encode("latin-1") + content


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (posting("Content-Length: -1"), 400),
        (posting("Content-Length: 2e1"), 400),
        (posting("Content-Length: 5", "Content-Length: 6", content=b"{}"), 400),
        (posting("Content-Length: 2", "Transfer-Encoding: chunked", content=b"{}"), 400),
        (posting("Transfer-Encoding: chunked", content=b"zz\r\n{}\r\n0\r\n\r\n"), 400),
        (posting("X-Long: " + "x" * 100_000), 400),
        (posting("X-Split: a\rX-Evil: 1"), 400),
        (posting("No colon"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(32), 400),
        (b"BREW / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\r\n\r\n \0\r\n\r\n", 400),
    ],
    ids=[
        "negative-length",
        "length-in-letters",
        "two-lengths",
        "length-and-chunks",
        "bad-chunk",
        "long-header",
        "cr-in-a-header",
        "no-colon",
        "tls-hello",
        "no-such-method",
        "no-such-http",
        "no-http",
    ],
)
async def test_what_is_not_http_is_refused_and_the_connection_closed(
    shared_cluster: Cluster, request_bytes: bytes, status: int
) -> None:
    answer = await said(shared_cluster, request_bytes)
    assert answer.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.0 %d " % status)), answer
    assert b"Traceback" not in answer
    assert b"X-Evil" not in answer.split(b"\r\n\r\n")[0]


@pytest.mark.bad_input
async def test_body_shorter_than_announced_is_not_waited_for_for_ever(
    shared_cluster: Cluster,
) -> None:
    answer = await said(shared_cluster, posting("Content-Length: 1000", content=b"{}"))
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b'"limit":"10 s"' in answer


@pytest.mark.bad_input
async def test_body_longer_than_announced_is_not_read_as_more_of_it(
    shared_cluster: Cluster,
) -> None:
    content = json.dumps(JOB).encode()
    answer = await said(shared_cluster, posting("Content-Length: 2", content=b"{}" + content))
    statuses = re.findall(rb"^HTTP/1\.\d (\d+)", answer, re.MULTILINE)
    assert statuses
    assert set(statuses) == {b"400"}


@pytest.mark.bad_input
async def test_announced_length_beyond_the_bound_is_refused_before_it_comes(
    shared_cluster: Cluster,
) -> None:
    answer = await said(shared_cluster, posting("Content-Length: 9223372036854775807"))
    assert answer.startswith(b"HTTP/1.1 413 "), answer
