"""The document that the API serves of itself: true, whole, and valid."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.http.app import application
from elasticps.daemon.http.contract import operation, operation_of, routes_of
from elasticps.daemon.http.openapi import document, undeclared
from elasticps.daemon.node import Node
from elasticps.daemon.notify import Notifier
from elasticps.security.tokens import Role
from elasticps.store import Store, StoreConfig

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[web.Application]:
    """A daemon's, which is not started: its etcd is nowhere."""
    config = DaemonConfig(
        etcd=StoreConfig(endpoints=("127.0.0.1:1",)),
        state_dir=tmp_path,
        log_dir=tmp_path,
        runtime_dir=tmp_path,
    )
    async with Store(config.etcd) as store, aiohttp.ClientSession() as client:
        yield application(Node(config, store, Notifier(None), lambda: config), client)


def operations(made: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, each)
        for path, item in made["paths"].items()
        for method, each in item.items()
        if method in METHODS
    ]


async def test_every_route_of_the_api_is_in_the_document(app: web.Application) -> None:
    """One that is not: declare its handler with ``contract.operation``, as jobs.py does."""
    assert undeclared(app) == []
    made = document(app, guarded=False)
    assert {"/api/v1/jobs", "/api/v1/openapi.json"} <= set(made["paths"])


async def test_a_route_that_is_not_declared_is_found() -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response()

    @operation("GET", "/api/v1/there", "There", role=Role.READ, answer=dict)
    async def elsewhere(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/healthz", handle)
    app.router.add_post("/api/v1/secret", handle)
    app.router.add_get("/api/v1/here", elsewhere)
    assert undeclared(app) == ["POST /api/v1/secret", "GET /api/v1/here"]


@pytest.mark.parametrize("guarded", [False, True])
async def test_the_document_is_valid_openapi(app: web.Application, guarded: bool) -> None:
    made = document(app, guarded=guarded)
    OpenAPIV31SpecValidator(made).validate()
    assert made["openapi"] == "3.1.0"
    assert ("security" in made) == guarded


async def test_operations_have_names_of_their_own_and_say_what_they_need(
    app: web.Application,
) -> None:
    made = operations(document(app, guarded=True))
    names = [each["operationId"] for _, _, each in made]
    assert sorted(set(names)) == sorted(names)
    roles = {role.value for role in Role}
    for method, path, each in made:
        assert each["summary"], path
        assert each["x-role"] in roles, path
        assert (each["x-role"] == "read") == (method == "get"), path
        assert {"400", "401", "403", "500", "503"} <= set(each["responses"]), path


async def test_the_schema_tells_the_limits_of_a_job(app: web.Application) -> None:
    job = document(app, guarded=False)["components"]["schemas"]["JobBody"]
    assert job["additionalProperties"] is False
    assert set(job["required"]) == {"argv", "cwd"}
    assert (job["properties"]["replicas"]["minimum"], job["properties"]["replicas"]["maximum"]) == (
        1,
        7,
    )
    assert job["properties"]["start_workers"]["maximum"] == 10_000


def test_each_route_is_declared_once() -> None:
    class Routes:
        @operation("GET", "/api/v1/x", "X", role=Role.READ, answer=dict)
        async def x(self, _: web.Request) -> web.Response:
            return web.Response()

        @operation("POST", "/api/v1/x", "Make an X", role=Role.SUBMIT, answer=dict, status=201)
        async def make(self, _: web.Request) -> web.Response:
            return web.Response()

        async def no_route(self) -> None:
            """Not declared."""

    routes = list(routes_of(Routes()))
    assert [(route.method, route.path) for route in routes] == [
        ("GET", "/api/v1/x"),
        ("POST", "/api/v1/x"),
    ]
    declared = operation_of(routes[1].handler)
    assert declared is not None
    assert (declared.role, declared.status) == (Role.SUBMIT, 201)
