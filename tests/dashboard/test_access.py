"""Who cannot see well, and who has no mouse: axe-core over every page, and the main tasks by keyboard alone."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PAGES = {
    "": "Now",
    "latency": "Latency",
    "service": "Service",
    "gain": "Gain",
    "predictions": "Predictions",
    "prompts": "Prompts",
    "request?request=cmpl-1": "Request",
    "history": "History",
    "sql": "SQL",
    "settings": "Settings and health",
    "glossary": "Glossary",
}
Run: TypeAlias = Callable[..., AbstractContextManager[str]]
DRAWN_MS = 60_000
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(18, 23, 29)"
"""The grounds of the two schemes, as `dashboard/.streamlit/config.toml` has them."""
STREAMLITS_OWN = {
    "list": "stSidebarNavItems",  # Streamlit puts the groups of its navigation between the list and its items.
    "listitem": "stSidebarNavItems",
}
"""Rules broken by Streamlit's own parts, which a page cannot change, and within which part."""


@pytest.fixture
def dashboard_url(standing: Any, recorded: Path, run_dashboard: Run) -> Iterator[str]:
    """The dashboard in a process of its own, over a small history and a stand-in for the controller."""
    with run_dashboard(standing.url, recorded) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    assert executable is not None, "Chromium is not installed: run 'make browser'"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


def opened(browser: Browser) -> Page:
    context = browser.new_context(color_scheme="light", viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(DRAWN_MS)
    return context.new_page()


def drawn(page: Page, title: str) -> None:
    """The page stands: its heading, something of its content, and nothing that is still being read."""
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=DRAWN_MS)
    content = page.get_by_test_id("stMain").locator(".sage-chart:has(.main-svg)").filter(visible=True)
    content = content.or_(page.get_by_test_id("stDataFrame")).or_(page.get_by_test_id("stTable"))
    content = content.or_(page.get_by_role("button", name="Show the last traffic"))
    expect(content.first).to_be_visible(timeout=DRAWN_MS)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=DRAWN_MS)


def barriers(page: Page) -> list[str]:
    """What axe-core finds in what is ours, and finds again: what fades in is no barrier."""
    found: list[str] = []
    for _ in range(4):
        found = _found(page)
        if not found:
            break
        page.wait_for_timeout(1500)
    return found


def _found(page: Page) -> list[str]:
    found = []
    for violation in Axe().run(page).response["violations"]:
        within = STREAMLITS_OWN.get(violation["id"])
        for node in violation["nodes"]:
            target = node["target"][0]
            own = within is not None and page.locator(target).first.evaluate(
                "(element, part) => element.closest(`[data-testid=${part}]`) !== null", within
            )
            if not own:
                found.append(f"{violation['id']}: {target}: {node['html'][:150]}")
    return found


def test_no_page_keeps_anybody_out(browser: Browser, dashboard_url: str) -> None:
    """No finding of axe-core on any page, in the light scheme and in the dark one."""
    page = opened(browser)
    found = {}
    for path, title in PAGES.items():
        page.emulate_media(color_scheme="light")
        page.goto(f"{dashboard_url}/{path}{'&' if '?' in path else '?'}range=all")
        drawn(page, title)
        expect(page.get_by_test_id("stApp")).to_have_css("background-color", LIGHT)
        found[title, "light"] = barriers(page)
        page.emulate_media(color_scheme="dark")
        expect(page.get_by_test_id("stApp")).to_have_css("background-color", DARK, timeout=DRAWN_MS)
        found[title, "dark"] = barriers(page)
    page.context.close()
    assert not any(found.values()), found


def press_until(page: Page, key: str, reached: str, most: int = 60) -> None:
    """Press a key until the focus is where a JavaScript expression of ``element`` holds."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate(f"(() => {{ const element = document.activeElement; return Boolean({reached}); }})()"):
            return
    focus = page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    pytest.fail(f"{key} pressed {most} times did not lead to {reached}; the focus is on {focus}")


def test_every_page_is_reached_by_keyboard(browser: Browser, dashboard_url: str) -> None:
    """Tab leads through the navigation, Enter opens a page."""
    page = opened(browser)
    page.goto(dashboard_url)
    drawn(page, "Now")
    for title in [title for title in PAGES.values() if title not in {"Now", "Request"}]:
        press_until(
            page, "Tab", f"element.closest('[data-testid=stSidebarNav]') && element.innerText.includes('{title}')"
        )
        page.keyboard.press("Enter")
        drawn(page, title)
    page.context.close()


def test_a_request_is_opened_from_the_queue_by_keyboard(browser: Browser, dashboard_url: str) -> None:
    """The table takes the focus; arrows move in it, Shift and Space choose a row, which opens its request."""
    page = opened(browser)
    page.goto(dashboard_url)
    drawn(page, "Now")
    press_until(page, "Tab", "element.tagName === 'CANVAS' && element.closest('[data-testid=stDataFrame]')")
    heading = page.get_by_role("heading", name="Request", exact=True)
    for _ in range(10):  # A table that is drawn anew at this moment takes no key.
        for key in ("ArrowDown", "Shift+Space"):
            page.keyboard.press(key)
        page.wait_for_timeout(1500)
        if heading.is_visible():
            break
    expect(heading).to_be_visible(timeout=DRAWN_MS)
    expect(page).to_have_url(re.compile(r"/request\?request=cmpl-"), timeout=DRAWN_MS)
    page.context.close()


def test_sql_is_asked_by_keyboard(browser: Browser, dashboard_url: str) -> None:
    """Tab to the editor, Ctrl+Enter runs what was written."""
    page = opened(browser)
    page.goto(f"{dashboard_url}/sql")
    drawn(page, "SQL")
    press_until(page, "Tab", "element.tagName === 'TEXTAREA'")
    page.keyboard.press("Control+a")
    page.keyboard.type("SELECT count(*) AS answers FROM outcomes")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text(re.compile("1 row in"))).to_be_visible(timeout=DRAWN_MS)
    page.context.close()


def test_the_mode_is_switched_by_keyboard(browser: Browser, dashboard_url: str, standing: Any) -> None:
    """The dialogue opens, takes mode, reason and confirmation, and sends the order."""
    page = opened(browser)
    page.goto(f"{dashboard_url}/settings")
    drawn(page, "Settings and health")
    press_until(page, "Tab", "element.tagName === 'SUMMARY' && element.innerText.includes('Switch the mode')")
    page.keyboard.press("Enter")
    press_until(page, "Tab", "element.type === 'radio'")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("button", name="Switch to shadow")).to_be_visible(timeout=DRAWN_MS)
    press_until(page, "Tab", "element.getAttribute('aria-label') === 'Reason'")
    page.keyboard.type("drill")
    press_until(page, "Tab", "element.type === 'checkbox'")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Switch to shadow")).to_be_enabled(timeout=DRAWN_MS)
    press_until(page, "Tab", "element.innerText.startsWith('Switch to shadow')")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Requested mode: shadow")).to_be_visible(timeout=DRAWN_MS)
    assert standing.world.orders == [{"mode": "shadow", "reason": "drill"}]
    page.context.close()
