"""A real headless Chromium that notes everything that a page must not do."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from tests.browser.reader import Reader

OUTPUT = Path(__file__).parent / "output"


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="package")
async def reader(browser: Browser) -> AsyncIterator[Reader]:
    """Who looks at a dashboard. At the end no page has complained, or asked anyone else."""
    OUTPUT.mkdir(exist_ok=True)
    context = await browser.new_context(viewport={"width": 1360, "height": 900})
    context.set_default_timeout(60_000)
    page = await context.new_page()
    reader = Reader(page, OUTPUT)
    _note_faults(page, reader)
    yield reader
    await context.close()
    assert reader.faults == []


def _note_faults(page: Page, reader: Reader) -> None:
    def asked(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "about") and parts.netloc != urlsplit(reader.url).netloc:
            reader.faults.append(f"asked {url}")

    page.on("request", lambda request: asked(request.url))
    page.on("pageerror", lambda error: reader.faults.append(f"error: {error}"))
    page.on(
        "console",
        lambda line: (
            reader.faults.append(f"{line.type}: {line.text}")
            if line.type in ("error", "warning") and not reader.expects(line.text)
            else None
        ),
    )
