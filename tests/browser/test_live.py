"""The dashboard in a browser, of a real cluster that trains while nodes come, die and drain.

The tests are the acts of one play, in order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.browser.reader import Reader
from tests.integration.cluster.acts import Cluster, Training, started

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(400)]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with started(3, tmp_path_factory.mktemp("live")) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def job(cluster: Cluster) -> Training:
    job = await cluster.train(max_workers=4, start_workers=3)
    await job.is_trained_by("n1", "n2", "n3")
    await job.lies_on("n1", "n2", "n3")
    return job


@pytest_asyncio.fixture(autouse=True, loop_scope="package")
async def leaves(reader: Reader, cluster: Cluster) -> AsyncIterator[None]:
    """The page is closed before the daemon that it shows."""
    yield
    await reader.leaves()


async def test_job_is_followed(reader: Reader, cluster: Cluster, job: Training) -> None:
    await reader.opens(cluster.local.nodes["n2"].http or "", f"#/job/{job.name}")
    page = reader.page
    await expect(reader.card("Workers").locator("tbody tr")).to_have_count(3)
    await expect(page.get_by_role("img", name="Rounds a second")).to_be_visible()
    await reader.sees("3 nodes:")
    await reader.sees(page.locator(".chart path.line[d^=M]").nth(1))
    await reader.keeps("live-job")
    assert await reader.severe_faults() == []


async def test_kill_join_and_drain_are_seen_as_they_happen(
    reader: Reader, cluster: Cluster, job: Training
) -> None:
    await reader.opens(cluster.local.nodes["n1"].http or "")
    page = reader.page
    await reader.sees("All is well")
    await job.goes_on(40)
    await reader.sees(page.locator(".chart path.line[d^=M]").first)
    await page.evaluate("window.sameForAll = 1")

    cluster.local.kill("n3")
    await reader.sees(page.locator(".events li", has_text="n3").first)
    await expect(page.get_by_role("link", name="n3", exact=True).nth(0)).to_be_visible()
    await expect(reader.card("Nodes").locator("tbody tr")).to_have_count(2)
    await reader.sees(
        page.locator(
            ".lanes .event[data-severity=error], .lanes .event[data-severity=warning]"
        ).first
    )
    await job.lies_on("n1", "n2")
    await job.goes_on(40)
    await reader.sees("2 nodes:")
    await reader.sees("One thing needs a look")  # though all has its copies again
    await reader.keeps("live-after-a-kill")

    fourth = await cluster.add_node()
    await job.lies_on("n1", "n2", fourth)
    await reader.sees("3 nodes:")
    await expect(reader.card("Nodes").locator("tbody tr")).to_have_count(3)
    await reader.sees(page.locator(".lanes .event[data-kind=join]").first)

    await reader.card("Nodes").get_by_role("link", name=fourth).click()
    await reader.sees(page.get_by_role("heading", name=fourth))
    await reader.sees(reader.card("Blocks held").locator("tbody th").first)
    await page.get_by_role("button", name="Drain").click()
    await page.get_by_label("Keep the daemon").check()
    await page.get_by_role("button", name="Drain it").click()
    await reader.sees("It holds none.")
    await reader.sees(page.locator(".title .state", has_text="drained"))
    await reader.keeps("live-drained")
    await page.get_by_role("button", name="Take back").click()
    await reader.sees(page.locator(".title .state", has_text="ready"))

    assert await page.evaluate("window.sameForAll") == 1, "it was loaded again"


async def test_job_is_cancelled(reader: Reader, cluster: Cluster, job: Training) -> None:
    await reader.opens(cluster.local.nodes["n2"].http or "", f"#/job/{job.name}")
    page = reader.page
    await page.get_by_role("button", name="Cancel").click()
    await page.get_by_role("button", name="Cancel the job").click()
    await reader.sees(page.locator(".title .state", has_text="cancelled"))
    assert (await job.ended()).state == "CANCELLED"
