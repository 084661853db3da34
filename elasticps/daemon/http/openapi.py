"""``GET /api/v1/openapi.json``: the API's OpenAPI 3.1 document, made from what is declared."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from elasticps.daemon.http.body import as_json
from elasticps.daemon.http.contract import (
    EVENTS,
    JSON,
    Operation,
    Query,
    operation,
    operation_of,
    routes_of,
)
from elasticps.daemon.http.refusals import DOCUMENT_PATH, ErrorAnswer
from elasticps.daemon.http.repeats import HEADER, KEPT_S, KEY
from elasticps.security.tokens import Role

Json = dict[str, Any]

ERRORS = {
    400: "Something that was given cannot be: `field` says what, `limit` what may be.",
    401: "No token, or one that is not good.",
    403: "The token's role is too small, or the request came from another site's page.",
    404: "There is nothing of that name.",
    408: "The body that was announced did not come in time.",
    409: "The Idempotency-Key was sent with another request before, or etcd refused the write.",
    413: "The body is larger than 1 MiB.",
    415: "The body is encoded, or is not JSON.",
    500: "The daemon has failed at this request.",
    503: "etcd does not answer. What was asked may have been done, or may still be.",
}
ALWAYS = (400, 401, 403, 413, 415, 500, 503)
REFERENCE = "#/components/schemas/{name}"
DESCRIPTION = """\
What any daemon of an elasticps cluster knows, and what it can be asked to do.

Every error is an `ErrorAnswer`. Bodies are JSON of at most 1 MiB; unknown and repeated names are
refused. `x-role` is the role that the token needs, where the cluster has tokens.
"""


class OpenApiRoutes:
    """``routes`` are those of the application, asked for when the document is."""

    def __init__(self, app: web.Application, *, guarded: bool) -> None:
        self._app = app
        self._guarded = guarded
        self._document: Json | None = None

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation("GET", DOCUMENT_PATH, "This document", role=Role.READ, answer=dict[str, Any])
    async def openapi(self, _: web.Request) -> web.Response:
        if self._document is None:  # the routes stay as they are once it is served
            self._document = document(self._app, guarded=self._guarded)
        return as_json(self._document)


def document(app: web.Application, *, guarded: bool) -> Json:
    """The OpenAPI document of the declared routes of ``app``; ``guarded``: it wants tokens."""
    declared = list(_declared(app))
    structs: dict[type, None] = {ErrorAnswer: None}
    for each, _ in declared:
        bodies = (each.body,) if each.body else ()
        structs.update(dict.fromkeys((*bodies, *each.answer)))
    _, made_schemas = msgspec.json.schema_components(list(structs), ref_template=REFERENCE)
    schemas: Json = msgspec.json.decode(msgspec.json.encode(made_schemas))  # no tuples in it
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    paths: dict[str, Json] = {}
    for each, description in declared:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, description)
    components: Json = {
        "schemas": schemas,
        "parameters": {"IdempotencyKey": _key_parameter()},
        "responses": {str(status): _error(text) for status, text in ERRORS.items()},
    }
    made: Json = {
        "openapi": "3.1.0",
        "info": {"title": "elasticps", "version": version("elasticps"), "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }
    if guarded:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
    return made


def undeclared(app: web.Application) -> list[str]:
    """The routes of the API that the document does not have, or has wrongly."""
    return [
        f"{route.method} {route.resource.canonical}"
        for route in _api_routes(app)
        if route.resource is not None
        if (declared := operation_of(route.handler)) is None
        or (declared.method, declared.path) != (route.method, route.resource.canonical)
    ]


def _declared(app: web.Application) -> Iterator[tuple[Operation, tuple[str, str]]]:
    """Each with its handler's name and docstring."""
    for route in _api_routes(app):
        declared = operation_of(route.handler)
        if declared is not None:
            yield declared, (route.handler.__name__, inspect.getdoc(route.handler) or "")


def _api_routes(app: web.Application) -> Iterator[web.AbstractRoute]:
    for route in app.router.routes():
        resource = route.resource
        comes_with_get = route.method == "HEAD"
        if resource is not None and resource.canonical.startswith("/api/") and not comes_with_get:
            yield route


def _operation(declared: Operation, named: tuple[str, str]) -> Json:
    name, description = named
    writes = declared.method != "GET"
    statuses = [
        *ALWAYS,
        *([404] if declared.names or "{" in declared.path else []),
        *([408, 409] if writes else []),
    ]
    made: Json = {
        "operationId": name,
        "tags": [declared.path.split("/")[3].partition(".")[0]],
        "summary": declared.summary,
        "x-role": declared.role.value,
        "responses": {
            str(declared.status): _success(declared),
            **{str(status): _reference("responses", str(status)) for status in sorted(statuses)},
        },
    }
    if description:
        made["description"] = description
    parameters = [*_path_parameters(declared.path), *_query_parameters(declared.query)]
    if declared.keyed:
        parameters.append(_reference("parameters", "IdempotencyKey"))
    if parameters:
        made["parameters"] = parameters
    if declared.body is not None:
        required = any(field.required for field in msgspec.structs.fields(declared.body))
        content = {JSON: {"schema": _reference("schemas", declared.body.__name__)}}
        made["requestBody"] = {"required": required, "content": content}
    return made


def _success(declared: Operation) -> Json:
    content: Json
    if declared.content_type == EVENTS:  # a schema would be that of each event, of several kinds
        content = {}
    elif declared.content_type != JSON:
        lines = [_schema(kind) for kind in declared.answer]
        content = {"schema": {"type": "string"}, **({"x-line": lines[0]} if lines else {})}
    else:
        schemas = [_schema(kind) for kind in declared.answer]
        content = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    return {"description": declared.summary, "content": {declared.content_type: content}}


def _schema(kind: type) -> Json:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _reference("schemas", kind.__name__)
    return msgspec.json.schema(kind)


def _error(text: str) -> Json:
    content = {JSON: {"schema": _reference("schemas", ErrorAnswer.__name__)}}
    return {"description": text, "content": content}


def _path_parameters(path: str) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", path):
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(query: type[Query]) -> Iterator[Json]:
    properties = msgspec.json.schema(query)["$defs"][query.__name__]["properties"]
    fields = {field.encode_name: field for field in msgspec.structs.fields(query)}
    for name, schema in properties.items():
        made = {"name": name, "in": "query", "required": fields[name].required, "schema": schema}
        if description := schema.pop("description", None):
            made["description"] = description
        yield made


def _key_parameter() -> Json:
    return {
        "name": HEADER,
        "in": "header",
        "required": False,
        "description": (
            "A word of your choice for this request. Sent again with the same word, to any daemon,"
            f" within {KEPT_S // 3600} hours, it has no second effect and gets the first answer."
        ),
        "schema": {"type": "string", "pattern": f"^{KEY.pattern}$"},
    }


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
