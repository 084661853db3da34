"""The dashboard in a browser, of a fake cluster of 1,000 nodes and 100,000 blocks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.browser.fake_cluster import FakeCluster, serving
from tests.browser.reader import Reader
from tests.support.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="package")

NARROW = {"width": 400, "height": 800}


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest_asyncio.fixture(loop_scope="package")
async def url(cluster: FakeCluster, reader: Reader) -> AsyncIterator[str]:
    async with serving(cluster) as url:
        yield url
        await reader.leaves()


async def test_thousand_nodes_are_one_screen_and_a_click_leads_to_each(
    reader: Reader, cluster: FakeCluster, url: str
) -> None:
    await reader.opens(url)
    await reader.sees("1 to 50 of 1,000")
    await reader.sees("1,000 nodes: 100,000 primary, 100,000 backup")
    await reader.sees("llm: 3 of 1,000 workers straggle: node-0017.1, node-0467.1")
    assert await reader.page.locator("tbody tr").count() < 100
    await reader.keeps("scale-overview")

    await reader.page.get_by_role("searchbox", name="Filter: Nodes").fill("0731")
    await reader.page.get_by_role("link", name="node-0731").click()
    await reader.sees(reader.page.get_by_role("heading", name="node-0731"))
    await reader.sees("100 primary, 100 backup")
    blocks = reader.card("Blocks held")
    await expect(blocks.locator("tbody tr")).to_have_count(50)
    held = cluster.held("node-0731")
    await expect(blocks.locator("tbody th").first).to_have_text(str(held[0]))
    await blocks.get_by_role("button", name="Next").first.click()
    await expect(blocks.locator("tbody th").first).to_have_text(str(held[50]))
    await reader.keeps("scale-node")


async def test_lost_node_is_told_without_reload(
    reader: Reader, cluster: FakeCluster, url: str
) -> None:
    await reader.opens(url)
    await reader.sees("1,000 nodes: 100,000 primary")
    cluster.lose("node-0042")
    await reader.sees("node node-0042 left: killed")
    await reader.sees("999 nodes: 100,000 primary, 100,000 backup")
    await reader.sees("1 to 50 of 999")


async def test_page_says_that_its_daemon_is_gone_and_goes_on_by_itself_when_it_is_back(
    reader: Reader,
) -> None:
    reader.provokes("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "Failed to load")
    async with serving(FakeCluster(nodes=3, blocks=12)) as url:
        await reader.opens(url)
        await reader.sees("3 nodes: 12 primary, 12 backup")
        await reader.page.evaluate("window.sameForAll = 1")
    await reader.sees("No word from this daemon since")
    another = FakeCluster(nodes=4, blocks=12)  # its next life: no event or id of the one before
    async with serving(another, int(url.rpartition(":")[2])):
        await reader.sees("4 nodes: 12 primary, 12 backup")
        await expect(reader.page.get_by_text("No word from this daemon")).to_have_count(0)
        another.tell("leave", "node-0001", "node node-0001 left: killed")
        await reader.sees("node node-0001 left: killed")
        assert await reader.page.evaluate("window.sameForAll") == 1, "it was loaded again"
        await reader.leaves()


async def test_move_of_a_block_is_seen_as_it_happens(reader: Reader) -> None:
    """Counted by the pixels of the map that have the colour of a role."""
    cluster = FakeCluster(nodes=3, blocks=12)
    reader.provokes("willReadFrequently")
    async with serving(cluster) as url:
        await reader.opens(url, "#/job/llm")
        await reader.sees("llm, 3 nodes: 12 primary, 12 backup")
        await reader.until_coloured("--learner", lambda pixels: pixels == 0)
        square = await reader.coloured("--primary") // 12
        assert square > 16
        (target,) = set(cluster.names) - set(cluster.homes[0])
        cluster.moves(0, target)
        await reader.until_coloured("--learner", lambda pixels: pixels == square)
        cluster.arrives(0)
        await reader.until_coloured("--learner", lambda pixels: pixels == 0)
        await reader.until_coloured("--primary", lambda pixels: pixels == 12 * square)
        await reader.leaves()


async def test_update_of_a_thousand_nodes_does_not_hold_up_the_reader(
    reader: Reader, cluster: FakeCluster, url: str
) -> None:
    """Bounded by rows drawn, not by time: a slow machine must not fail it."""
    await reader.opens(url)
    await reader.sees("1,000 nodes: 100,000 primary")
    before = await reader.page.locator("*").count()
    for number in range(300):
        cluster.tell("move", cluster.names[number], f"block {number} moved")
    await reader.sees("block 299 moved")
    assert await reader.page.locator("*").count() < before + 1500


async def test_job_page_shows_curves_under_their_timeline(
    reader: Reader, cluster: FakeCluster, url: str
) -> None:
    await reader.opens(url, "#/job/llm")
    await reader.sees(reader.page.get_by_role("img", name="loss: 2.0"))
    await reader.sees(reader.page.locator(".lanes .event").first)
    await reader.sees("round 2999 <b>loss</b>")
    await reader.page.get_by_role("searchbox", name="Filter: Workers").fill("straggles")
    await expect(reader.card("Workers").locator("tbody tr")).to_have_count(3)
    lanes, curve = reader.page.locator(".lanes .grid").first, reader.page.locator(".chart .grid")
    on_lanes, on_curve = await lanes.bounding_box(), await curve.first.bounding_box()
    assert on_lanes
    assert on_curve
    assert (on_lanes["x"], on_lanes["width"]) == (on_curve["x"], on_curve["width"])
    await reader.keeps("scale-job")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
async def test_axe_finds_nothing_serious(reader: Reader, url: str, scheme: str) -> None:
    await reader.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    for path, shown in (
        ("#/", "1,000 nodes: 100,000 primary"),
        ("#/node/node-0007", "100 primary, 100 backup"),
        ("#/job/digits", "ZeroDivisionError: division by zero"),
    ):
        await reader.opens(url, path)
        await reader.sees(shown)
        await reader.keeps(f"{scheme}-{path.strip('#/').partition('/')[0] or 'overview'}")
        assert await reader.severe_faults() == []
    await reader.opens(url, "#/node/node-0008")
    await reader.page.get_by_role("button", name="Drain").click()
    await reader.sees("Drain node-0008?")
    assert await reader.severe_faults() == []


async def test_narrow_screen_scrolls_down_and_never_sideways(reader: Reader, url: str) -> None:
    await reader.page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    for path in ("#/", "#/node/node-0007", "#/job/llm"):
        await reader.opens(url, path)
        await reader.sees("100,000 primary" if "node/" not in path else "100 primary")
        wide: int = await reader.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= NARROW["width"], path
        await reader.keeps(f"narrow-{path.strip('#/').partition('/')[0] or 'overview'}")


async def test_keyboard_alone_leads_to_a_node_and_through_its_drain(
    reader: Reader, cluster: FakeCluster, url: str
) -> None:
    await reader.opens(url)
    await reader.sees("1 to 50 of 1,000")
    await reader.tabs_to("To the content")
    await reader.tabs_to("node-0001", most=120)
    await reader.page.keyboard.press("Enter")
    await reader.sees(reader.page.get_by_role("heading", name="node-0001"))
    assert await reader.focused() == "node-0001"
    await reader.tabs_to("Drain")
    await reader.page.keyboard.press("Enter")
    await reader.sees("Drain node-0001?")
    assert await reader.focused() == "No, go back"
    await reader.page.keyboard.press("Escape")
    await expect(reader.page.locator("dialog")).to_have_count(0)
    assert await reader.focused() == "Drain"
    assert ("POST", "/api/v1/nodes/node-0001/drain") not in cluster.asked

    await reader.page.keyboard.press("Enter")
    await reader.tabs_to("Drain it")
    await reader.page.keyboard.press("Enter")
    await until(lambda: ("POST", "/api/v1/nodes/node-0001/drain") in cluster.asked)
    await reader.sees(reader.page.get_by_role("button", name="Take back"))


async def test_focus_stays_where_it_is_while_the_cluster_changes(
    reader: Reader, cluster: FakeCluster, url: str
) -> None:
    await reader.opens(url)
    link = reader.page.get_by_role("link", name="node-0005")
    await reader.sees(link)
    await link.focus()
    cluster.lose("node-0004")
    await reader.sees("1 to 50 of 999")
    assert await reader.focused() == "node-0005"


@pytest.mark.parametrize(("role", "seen"), [("read", False), ("submit", False), ("admin", True)])
async def test_only_who_may_drain_is_offered_it(
    reader: Reader, cluster: FakeCluster, url: str, role: str, seen: bool
) -> None:
    cluster.role = role
    await reader.opens(url, "#/node/node-0001")
    await reader.sees("100 primary, 100 backup")
    drain = reader.page.get_by_role("button", name="Drain")
    await expect(drain).to_be_visible() if seen else await expect(drain).to_be_hidden()


@pytest.mark.parametrize(
    ("role", "owner", "seen"),
    [("read", "alice", False), ("submit", "alice", True), ("submit", "bob", False)],
)
async def test_only_who_may_cancel_a_job_is_offered_it(
    reader: Reader, cluster: FakeCluster, url: str, role: str, owner: str, seen: bool
) -> None:
    cluster.role = role
    cluster.jobs["llm"]["owner"] = owner
    await reader.opens(url, "#/job/llm")
    await reader.sees("1,000 nodes: 100,000 primary")
    cancel = reader.page.get_by_role("button", name="Cancel")
    await expect(cancel).to_be_visible() if seen else await expect(cancel).to_be_hidden()


async def test_page_of_a_name_that_comes_again_has_nothing_of_the_earlier_job(
    reader: Reader,
) -> None:
    cluster = FakeCluster(nodes=4, blocks=40)
    lines = ("GET", "/api/v1/jobs/digits/logs")
    cluster.tell("job", None, "digits failed: of the first", job="digits")
    async with serving(cluster) as url:
        await reader.opens(url, "#/job/digits")
        await reader.sees("digits failed: of the first")
        await until(lambda: cluster.asked.count(lines) == 1)
        cluster.submit_again("digits")
        await reader.sees("digits submitted: train.py")
        await expect(reader.page.get_by_text("of the first")).to_have_count(0)
        await until(lambda: cluster.asked.count(lines) == 2)
        await reader.leaves()


async def test_token_is_asked_for_kept_in_the_tab_and_shown(reader: Reader) -> None:
    cluster = FakeCluster(nodes=4, blocks=40, token="eps_right")
    reader.provokes("401")
    async with serving(cluster) as url:
        await reader.opens(url)
        box = reader.page.get_by_role("textbox", name="Token")
        await box.fill("eps_wrong")
        await reader.page.keyboard.press("Enter")
        await reader.sees("a token is needed")
        await box.fill("eps_right")
        await reader.page.keyboard.press("Enter")
        await reader.sees("4 nodes: 40 primary")
        await reader.page.reload()
        await reader.sees("4 nodes: 40 primary")
        kept = await reader.page.evaluate("[Object.values(localStorage), document.cookie]")
        await reader.leaves()
    assert kept == [[], ""]


async def test_theme_is_the_systems_until_it_is_chosen(reader: Reader, url: str) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    await reader.page.emulate_media(color_scheme="dark")
    await reader.opens(url)
    dark = await reader.page.evaluate(back)
    await reader.page.get_by_role("button", name="Theme: system").click()
    await reader.sees(reader.page.get_by_role("button", name="Theme: light"))
    light = await reader.page.evaluate(back)
    assert light != dark
    await reader.page.reload()
    assert await reader.page.evaluate(back) == light


async def test_daemon_that_goes_away_is_told_and_found_again(reader: Reader) -> None:
    cluster = FakeCluster(nodes=3, blocks=30)
    reader.provokes("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY")
    async with serving(cluster) as url:
        await reader.opens(url)
        await reader.sees("3 nodes: 30 primary")
    await reader.sees("No word from this daemon since")
    await expect(reader.page.locator("#live")).to_have_text("no connection")
