"""The dashboard's page and its files, and who its reader is.

The page has no data: its scripts ask the API, with the token that the reader gives. All files are
read once at the start, so no request names a path. Their folder's name is a digest of them all: a
browser may keep them for ever, and never mixes two versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib.resources import files

from aiohttp import web

from elasticps.daemon.http.answers import Identity
from elasticps.daemon.http.body import as_json
from elasticps.daemon.http.contract import operation, routes_of
from elasticps.daemon.http.guard import proven_caller
from elasticps.daemon.http.refusals import NotFound
from elasticps.security.tokens import Role

PAGE = "index.html"
STATIC = "/static/"
DIGEST_CHARACTERS = 16
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FOR_EVER = "public, max-age=31536000, immutable"
ASK_EACH_TIME = "no-cache"


class DashboardRoutes:
    def __init__(self) -> None:
        contents = dashboard_files()
        digest = _digest(contents)
        page = contents.pop(PAGE).replace(b"STATIC", f"{STATIC[1:]}{digest}".encode())
        self._page = page
        self._etag = f'"{hashlib.sha256(page).hexdigest()[:DIGEST_CHARACTERS]}"'
        self._digest = digest
        self._files = contents

    def routes(self) -> Iterable[web.RouteDef]:
        return (
            web.get("/", self.page),
            web.get(STATIC + "{digest}/{name}", self.file),
            *routes_of(self),
        )

    async def page(self, request: web.Request) -> web.Response:
        headers = {**HEADERS, "Cache-Control": ASK_EACH_TIME, "ETag": self._etag}
        if request.headers.get("If-None-Match") == self._etag:
            return web.Response(status=304, headers=headers)
        return _answer(PAGE, self._page, headers)

    async def file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if request.match_info["digest"] != self._digest or name not in self._files:
            raise NotFound("there is no such file", field="path", hint="load the page again")
        return _answer(name, self._files[name], {**HEADERS, "Cache-Control": FOR_EVER})

    @operation("GET", "/api/v1/whoami", "Who asks", role=Role.READ, answer=Identity)
    async def whoami(self, request: web.Request) -> web.Response:
        caller = proven_caller(request)
        if caller is None:
            return as_json(Identity(role=Role.ADMIN, name=None))
        return as_json(Identity(role=caller.role, name=caller.name))


def dashboard_files() -> dict[str, bytes]:
    """Every file of the dashboard by its name, as it lies in the package."""
    return {
        entry.name: entry.read_bytes()
        for entry in files("elasticps").joinpath("dashboard").iterdir()
        if entry.name.rpartition(".")[2] in TYPES
    }


def _digest(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode() + contents[name])
    return digest.hexdigest()[:DIGEST_CHARACTERS]


def _answer(name: str, body: bytes, headers: Mapping[str, str]) -> web.Response:
    kind = TYPES[name.rpartition(".")[2]]
    return web.Response(body=body, headers={**headers, "Content-Type": kind})
