"""Who looks at a dashboard in a browser: goes to pages, presses keys, waits for what they show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Locator, Page, expect

SEVERE = ("serious", "critical")
PATIENCE_S = 60.0
COLOURED = """variable => {
    const probe = document.createElement("span");
    probe.style.color = `var(${variable})`;
    document.body.append(probe);
    const wanted = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    const map = document.querySelector("canvas.map");
    const { data } = map.getContext("2d").getImageData(0, 0, map.width, map.height);
    let found = 0;
    for (let at = 0; at < data.length; at += 4) {
        found += wanted.every((part, index) => data[at + index] === part);
    }
    return found;
}"""


class Reader:
    """``faults`` is what the page complained about, or did that it must not do."""

    def __init__(self, page: Page, output: Path) -> None:
        self.page = page
        self.url = ""
        self.faults: list[str] = []
        self._output = output
        self._expected: tuple[str, ...] = ()

    def expects(self, text: str) -> bool:
        """Whether a line on the console is one that the test provokes: the browser's own words."""
        return any(part in text for part in self._expected)

    def provokes(self, *parts: str) -> None:
        self._expected = (*self._expected, *parts)

    async def opens(self, url: str, path: str = "") -> None:
        self.url = url
        await self.page.goto(f"{url}/{path}")

    async def sees(self, text: str | Locator, timeout_s: float = 60.0) -> None:
        found = self._shown(text) if isinstance(text, str) else text
        await expect(found).to_be_visible(timeout=timeout_s * 1000)

    def _shown(self, text: str) -> Locator:
        return self.page.get_by_text(text).locator("visible=true").first

    async def leaves(self) -> None:
        """Before what it looks at goes away."""
        await self.page.goto("about:blank")

    async def coloured(self, variable: str) -> int:
        """How many pixels of the block map have the colour that a CSS variable names."""
        return int(await self.page.evaluate(COLOURED, variable))

    async def until_coloured(self, variable: str, right: Callable[[int], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not right(pixels := await self.coloured(variable)):
            assert time.monotonic() < deadline, f"{pixels} pixels of {variable}"
            await asyncio.sleep(0.05)

    def card(self, title: str) -> Locator:
        return self.page.get_by_role("region", name=title, exact=True).first

    async def keeps(self, name: str, *, whole: bool = True) -> Path:
        """A screenshot among the test output."""
        path = self._output / f"{name}.png"
        await self.page.screenshot(path=path, full_page=whole, caret="initial")
        return path

    async def severe_faults(self) -> list[str]:
        """What axe-core finds on the page as it is now, serious and critical alone."""
        found: dict[str, Any] = (await Axe().run(self.page)).response
        return [
            f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes']][:3]}"
            for each in found["violations"]
            if each["impact"] in SEVERE
        ]

    async def focused(self) -> str:
        """What has the focus: its text, or its label."""
        text: str = await self.page.evaluate(
            "(document.activeElement.textContent || document.activeElement.ariaLabel || '').trim()"
        )
        return text

    async def tabs_to(self, text: str, *, most: int = 60) -> None:
        """Press Tab until what has that text has the focus."""
        seen = []
        for _ in range(most):
            await self.page.keyboard.press("Tab")
            seen.append(await self.focused())
            if seen[-1] == text:
                return
        raise AssertionError(f"no Tab leads to {text!r}: {seen}")
