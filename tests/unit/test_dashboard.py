"""The dashboard's files: how they are served, and what may not be in them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from elasticps.daemon.http.app import errors_as_json, is_own
from elasticps.daemon.http.dashboard import POLICY, DashboardRoutes, dashboard_files

ROOT = Path(__file__).parents[2]
FILES = dashboard_files()
SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application(middlewares=[errors_as_json])
    app.router.add_routes(DashboardRoutes().routes())
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def session(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url) as session:
        yield session


async def static_folder(session: aiohttp.ClientSession) -> str:
    async with session.get("/") as answer:
        found = re.search(r"static/[0-9a-f]+", await answer.text())
    assert found
    return f"/{found[0]}"


async def test_page_and_files_come_with_a_strict_policy(session: aiohttp.ClientSession) -> None:
    folder = await static_folder(session)
    for path in ("/", f"{folder}/main.js", f"{folder}/style.css", f"{folder}/icon.svg"):
        async with session.get(path) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Security-Policy"] == POLICY
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert "Set-Cookie" not in answer.headers
    assert "unsafe" not in POLICY


async def test_files_are_kept_for_ever_and_the_page_is_asked_for_each_time(
    session: aiohttp.ClientSession,
) -> None:
    folder = await static_folder(session)
    async with session.get(f"{folder}/main.js") as answer:
        assert "immutable" in answer.headers["Cache-Control"]
    async with session.get("/") as answer:
        assert answer.headers["Cache-Control"] == "no-cache"
        tag = answer.headers["ETag"]
    async with session.get("/", headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304


@pytest.mark.parametrize(
    "path",
    [
        "{folder}/../../__init__.py",
        "{folder}/..%2f..%2f__init__.py",
        "{folder}/%2e%2e/main.js",
        "{folder}/index.html",
        "{folder}/main.js%00",
        "{folder}//etc/passwd",
        "{folder}/",
        "{folder}",
        "/static/0123456789abcdef/main.js",
        "/static/../pyproject.toml",
    ],
)
async def test_no_path_leads_out_of_the_dashboard(
    session: aiohttp.ClientSession, url: str, path: str
) -> None:
    folder = await static_folder(session)
    assert await raw_status(url, path.format(folder=folder)) in (400, 404)


async def raw_status(url: str, path: str) -> int:
    """The answer to a path that no client has tidied up."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_write_text_and_never_markup(name: str) -> None:
    script = FILES[name].decode()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
    assert not re.search(r"""["'`](https?:)?//[a-z]""", script.replace("http://www.w3.org", ""))


def test_page_has_nothing_inline_and_asks_nobody_else() -> None:
    page = FILES["index.html"].decode()
    assert not re.search(r"<script(?![^>]* src=)", page)
    assert "<style" not in page
    assert not re.search(r"\son[a-z]+=|\sstyle=", page)
    assert "://" not in page
    assert "url(" not in FILES["style.css"].decode()
    assert "@import" not in FILES["style.css"].decode()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_import_is_a_file_of_the_dashboard(name: str) -> None:
    imported = re.findall(r'from "\./([^"]+)"', FILES[name].decode())
    assert set(imported) <= set(SCRIPTS)


def test_files_are_in_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "elasticps", source / "elasticps")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        for name, content in FILES.items():
            assert packed.read(f"elasticps/dashboard/{name}") == content


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("http://10.0.0.7:7400", True),
        ("HTTP://10.0.0.7:7400", True),
        ("https://10.0.0.7:7400", False),
        ("http://10.0.0.7", False),
        ("http://10.0.0.7:7401", False),
        ("http://evil.example", False),
        ("http://10.0.0.7:7400.evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_own_origin_is_scheme_host_and_port(origin: str, own: bool) -> None:
    assert is_own(origin, "http", "10.0.0.7:7400") is own
