"""The API against what its own document generates: good requests and bad, on a real daemon."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.cluster.acts import Cluster, started

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = 25
"""Of good requests and of bad ones, a route."""
TIMEOUT_S = 10.0
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def idle_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One node, which runs no workers: what is submitted to it waits."""
    directory = tmp_path_factory.mktemp("idle-cluster")
    async with started(1, directory, workers_per_node=0) as cluster:
        yield cluster


def narrowed(document: dict[str, Any], script: Path) -> dict[str, Any]:
    """The document with the script, folder and node that there are, so that some is accepted."""
    job = document["components"]["schemas"]["JobBody"]["properties"]
    words = {"type": "string", "maxLength": 20, "pattern": "^[a-z]*$"}
    job["argv"] |= {"prefixItems": [{"const": script.name}], "items": words, "maxItems": 4}
    job["cwd"] |= {"const": str(script.parent)}
    for name in ("checkpoint_dir", "resume"):
        job[name] |= {"const": ""}
    job["replicas"] |= {"minimum": 3}  # at least min_insync, which the schema cannot say
    job["min_insync"] |= {"maximum": 3}
    for name in ("checkpoint_every", "staleness", "backup_workers"):
        job[name] |= {"const": 0}
    job["max_workers"] |= {"const": 10_000}
    job["env"] |= {"propertyNames": {"pattern": "^[A-C]{1,3}$"}, "maxProperties": 3}
    job["env"]["additionalProperties"] |= words
    for name in ("strategy", "codec", "data_policy", "placement"):
        job[name] |= {"const": job[name]["default"]}
    return document


def fuzz(served: dict[str, Any], likely: dict[str, Any], url: str) -> dict[str, list[int]]:
    """Ask what is right by ``likely`` and what is wrong by ``served``; the statuses by operation.

    Raises what a check found.
    """
    answered: dict[str, list[int]] = {}
    for document, mode in (
        (likely, GenerationMode.POSITIVE),
        (served, GenerationMode.NEGATIVE),
    ):
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = found.ok()
            if operation.label in STOPS:
                continue
            if mode is GenerationMode.POSITIVE or has_input(operation):
                ask_all(operation, mode, url, answered.setdefault(operation.label, []))
    return answered


def ask_all(operation: Any, mode: GenerationMode, url: str, statuses: list[int]) -> None:
    @seed(1)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        response = case.call(base_url=url, timeout=TIMEOUT_S)
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    ask()


def has_input(operation: Any) -> bool:
    """Anything that can be wrong: any text is a path's parameter."""
    parts = (operation.query, operation.headers, operation.body)
    return any(len(part) for part in parts)


STOPS = (
    "POST /api/v1/nodes/{node}/restart",
    "POST /api/v1/nodes/{node}/drain",
    "GET /api/v1/stream",
)
"""Whose good requests would end the daemon, were the node's name guessed; or have no end."""


async def test_what_the_document_generates_is_answered_as_it_says(
    idle_cluster: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "never.py"
    script.write_text("raise SystemExit(1)")
    served = await idle_cluster.get("/api/v1/openapi.json")
    likely = narrowed(copy.deepcopy(served), script)
    try:
        answered = await asyncio.to_thread(fuzz, served, likely, idle_cluster.url)
    finally:
        await cancel_all(idle_cluster)
    submissions = answered["POST /api/v1/jobs"]
    assert submissions.count(201) >= 3, submissions
    assert submissions.count(400) >= 3, submissions
    assert len(answered) >= 12
    assert answered["GET /api/v1/jobs"].count(200) >= 3
    assert "Traceback" not in idle_cluster.log_of("n1")
    assert await idle_cluster.get("/healthz") == {"ok": True}


async def cancel_all(cluster: Cluster) -> None:
    for job in (await cluster.status()).jobs:
        async with (
            aiohttp.ClientSession(cluster.url) as session,
            session.post(f"/api/v1/jobs/{job.job}/cancel") as answer,
        ):
            assert answer.status == 202
