"""Tokens at the HTTP API: who has none learns nothing, and who has one may do its role's work."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from elasticps.daemon.local_cluster import LocalCluster, Place
from elasticps.security.tokens import Role, create_token
from tests.integration.cluster.acts import LOOK_S
from tests.support.nodes import Authority

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS = [
    ("GET", "/api/v1/jobs/{job}"),
    ("GET", "/api/v1/jobs/none"),
    ("GET", "/api/v1/jobs/{job}/logs"),
    ("GET", "/api/v1/jobs/none/logs"),
    ("POST", "/api/v1/jobs"),
    ("POST", "/api/v1/jobs/{job}/cancel"),
    ("POST", "/api/v1/jobs/none/cancel"),
    ("POST", "/api/v1/nodes/n1/drain"),
    ("POST", "/api/v1/nodes/none/drain"),
    ("DELETE", "/api/v1/jobs"),
    ("DELETE", "/api/v1/jobs/{job}"),
    ("GET", "/api/v1/status?nonsense=1"),
    ("GET", "/api/v1/openapi.json"),
    ("GET", "/api/v1/none"),
    ("PUT", "/none"),
]
WRITES = [each for each in PATHS if each[0] == "POST"] + [("DELETE", "/api/v1/jobs/{job}")]


class Guarded:
    """A daemon with certificates and tokens, and a client with the token of a role, or none."""

    def __init__(self, cluster: LocalCluster, ca: Path, tokens: dict[str, str]) -> None:
        self.cluster = cluster
        self.tokens = tokens
        self.job = ""
        self._tls = ssl.create_default_context(cafile=ca)

    async def ask(
        self, method: str, path: str, user: str | None = None, **given: object
    ) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {self.tokens[user]}"} if user else {}
        headers |= given.pop("headers", {})  # type: ignore[arg-type]
        url = f"{self.cluster.api}{path.format(job=self.job)}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, ssl=self._tls, headers=headers, **given) as answer,  # type: ignore[arg-type]
        ):
            return answer.status, await answer.text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """Its one job is alice's."""
    directory = tmp_path_factory.mktemp("guarded")
    authority = Authority(directory / "certs")
    files = authority.node("n1")
    tokens = {
        name: create_token(directory / "tokens.json", name, role)
        for name, role in [
            ("viewer", Role.READ),
            ("alice", Role.SUBMIT),
            ("bob", Role.SUBMIT),
            ("root", Role.ADMIN),
        ]
    }
    options = (
        f"--tls-ca={files.ca}",
        f"--tls-cert={files.cert}",
        f"--tls-key={files.key}",
        f"--tokens={directory / 'tokens.json'}",
    )
    (directory / "never.py").write_text("")
    async with LocalCluster(
        nodes=1,
        workers_per_node=0,
        directory=directory / "cluster",
        place=lambda _: Place(options=options),
    ) as cluster:
        guarded = Guarded(cluster, files.ca, tokens)
        status, text = await guarded.ask("POST", "/api/v1/jobs", "alice", json=job(directory))
        assert status == 201, text
        guarded.job = json.loads(text)["job"]
        # The leader's word about it is the last that is written.
        while await cluster.store.get(cluster.keys.job_status(guarded.job)) is None:
            await asyncio.sleep(LOOK_S)
        yield guarded


def job(directory: Path) -> dict[str, object]:
    return {"argv": ["never.py"], "cwd": str(directory)}


async def keys(guarded: Guarded) -> list[str]:
    listing = await guarded.cluster.store.list(guarded.cluster.keys.root)
    return [item.key for item in listing.items]


@pytest.mark.bad_input
@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_without_a_token_all_paths_are_answered_alike(
    guarded: Guarded, method: str, path: str
) -> None:
    before = await keys(guarded)
    plain = await guarded.ask("GET", "/api/v1/status")
    assert plain[0] == 401
    assert await guarded.ask(method, path) == plain
    assert guarded.job not in plain[1]
    assert await keys(guarded) == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "proof", ["Bearer", "Bearer eps_wrong", "Basic cm9vdDpyb290", "bearer x", "Bearer a b"]
)
async def test_a_token_that_is_none_opens_nothing_and_is_not_repeated(
    guarded: Guarded, proof: str
) -> None:
    status, text = await guarded.ask("GET", "/api/v1/status", headers={"Authorization": proof})
    assert status == 401
    assert proof not in text


@pytest.mark.bad_input
@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_too_small_a_role_learns_not_what_there_is(
    guarded: Guarded, method: str, path: str
) -> None:
    before = await keys(guarded)
    status, text = await guarded.ask(method, path, "viewer", json={})
    assert status == 403
    assert json.loads(text)["error"]["field"] == "token"
    assert "none" not in text
    assert guarded.job not in text
    assert await keys(guarded) == before


@pytest.mark.bad_input
async def test_a_submitter_cannot_change_anothers_job(guarded: Guarded) -> None:
    before = await keys(guarded)
    job = "/api/v1/jobs/{job}"
    for method, path in (("POST", f"{job}/cancel"), ("POST", f"{job}/checkpoint"), ("DELETE", job)):
        status, text = await guarded.ask(method, path, "bob")
        assert status == 403
        assert json.loads(text)["error"]["field"] == "job"
    status, text = await guarded.ask("DELETE", job, "alice")
    assert status == 400  # it has not ended
    assert (await guarded.ask("GET", "/api/v1/jobs/{job}", "bob"))[0] == 200  # who reads reads all
    assert await keys(guarded) == before


async def test_keys_of_requests_are_each_users_own(guarded: Guarded, tmp_path: Path) -> None:
    """One user's key neither gets another's answer nor tells that it was used."""
    (tmp_path / "never.py").write_text("")
    key = {"Idempotency-Key": secrets.token_hex()}
    answers = []
    for user in ("alice", "bob", "alice"):
        status, text = await guarded.ask(
            "POST", "/api/v1/jobs", user, json=job(tmp_path), headers=key
        )
        assert status == 201, text
        answers.append(json.loads(text)["job"])
    assert answers[0] == answers[2] != answers[1]


async def test_the_document_says_that_tokens_are_wanted(guarded: Guarded) -> None:
    status, text = await guarded.ask("GET", "/api/v1/openapi.json", "viewer")
    assert status == 200
    document = json.loads(text)
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["paths"]["/api/v1/jobs"]["post"]["x-role"] == "submit"
    assert "security" in document
