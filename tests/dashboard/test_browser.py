import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from store.entries import Entry, Outcome
from store.history.writer import HistoryWriter

pytestmark = pytest.mark.browser

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
    "request": "Request",
    "history": "History",
    "sql": "SQL",
    "settings": "Settings and health",
    "glossary": "Glossary",
}
WITHOUT_CHARTS = {"prompts", "history"}
"""Pages that have nothing of the last minutes in the small history, and say so."""
Run: TypeAlias = Callable[..., AbstractContextManager[str]]
DRAWN_MS = 30_000
LIVE_MS = 15_000
"""Live parts follow within about a second; a busy machine is given more."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small history with outcomes."""
    path = tmp_path_factory.mktemp("store") / "history"
    outcome = Outcome(
        request_id="a",
        time_s=1.0,
        output_tokens=40,
        censored=False,
        cluster=1,
        pit=0.5,
        crps_tokens=3.0,
        log_score=1.0,
        within_50=True,
        within_90=True,
        answer=0,
    )
    writer = HistoryWriter(path).start()
    writer.append([Entry(engine_id="engine-0", session_id="s", batch=None, record=outcome)])
    writer.close()
    return path


@pytest.fixture(scope="module")
def dashboard_url(
    lasting: Any, store: Path, run_dashboard: Run, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The dashboard in a process of its own, started by the command that it gives; what fails in it must not hide."""
    log = tmp_path_factory.mktemp("dashboard") / "log"
    with run_dashboard(lasting.url, store, log=log) as url:
        yield url
    told = BROWSER_LEFT.sub("", log.read_text())
    assert "Traceback" not in told, told


BROWSER_LEFT = re.compile(
    r"Exception in ASGI application\n(?:.*\n)*?"
    r"starlette\.websockets\.WebSocketDisconnected: Cannot call \"send\" once a close message has been sent\.\n"
)
"""What Streamlit tells when a browser leaves while it closes the connection itself."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """A real Chromium with a fresh profile."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.fail("Chromium is not installed: install it, or leave these tests out with -m 'not browser'")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=executable,
            args=list(FLAGS),
            viewport={"width": 1440, "height": 1000},
        )
        context.set_default_timeout(DRAWN_MS)
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext, lasting: Any) -> Iterator[Page]:
    """A fresh tab; afterwards the stand-in for the controller is up again."""
    tab = browser.new_page()
    yield tab
    tab.close()
    if not lasting._thread.is_alive():
        lasting.start()


def seen_charts(page: Page) -> Any:
    """The charts of a page; one more, empty and hidden, only has the browser fetch the code for them."""
    return page.locator(".sage-chart:has(.main-svg)").filter(visible=True)


def metric(page: Page, label: str) -> Any:
    return page.get_by_test_id("stMetric").filter(has_text=label).get_by_test_id("stMetricValue")


def assert_no_error_box(page: Page) -> None:
    expect(page.get_by_test_id("stException")).to_have_count(0)


@pytest.mark.parametrize(("path", "title"), PAGES.items())
def test_every_page_loads_without_an_error_box(page: Page, dashboard_url: str, path: str, title: str) -> None:
    """Each page has its title and at least one chart or table, opened by its own address."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    hosts: set[str | None] = set()
    page.on("request", lambda asked: hosts.add(urlsplit(asked.url).hostname))
    page.goto(f"{dashboard_url}/{path}")
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=DRAWN_MS)
    drawn = seen_charts(page).or_(page.get_by_test_id("stDataFrame"))
    drawn = drawn.or_(page.get_by_test_id("stAlert")) if path in WITHOUT_CHARTS else drawn
    drawn = drawn.or_(page.get_by_test_id("stTable")) if path == "glossary" else drawn
    expect(drawn.first).to_be_visible(timeout=DRAWN_MS)
    assert_no_error_box(page)
    assert problems == []
    assert hosts - {None} == {"127.0.0.1"}, "nothing is fetched from another host, the icon neither"
    texts = page.get_by_test_id("stMain").get_by_test_id("stMarkdown").filter(visible=True).all_inner_texts()
    assert "Streamlit" not in "".join(texts[:1]), "it writes what stands in the entry script, if it is let"


WIDTHS = (800, 1440, 1920)
CUT = """() => [...document.querySelectorAll('[data-testid=stMetricValue], [data-testid=stMetricValue] *')]
    .filter(e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"""
"""Figures that are cut."""
OVERFLOW = """() => { const main = document.querySelector('[data-testid=stMain]');
    return main.scrollWidth - main.clientWidth; }"""


def test_every_page_fits_every_width(page: Page, dashboard_url: str) -> None:
    """At 800, 1440 and 1920 px nothing reaches beyond the edge and no figure is cut."""
    faults = [fault for path, title in PAGES.items() for fault in _faults(page, f"{dashboard_url}/{path}", title)]
    page.set_viewport_size({"width": 1440, "height": 1000})
    assert faults == []


def _faults(page: Page, address: str, title: str) -> Iterator[str]:
    page.goto(address)
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=DRAWN_MS)
    drawn = seen_charts(page).or_(page.get_by_test_id("stDataFrame")).or_(page.get_by_test_id("stAlert"))
    expect(drawn.or_(page.get_by_test_id("stTable")).first).to_be_visible(timeout=DRAWN_MS)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        yield from _lasting(page, partial(_misfits, page, f"{title} at {width} px"))


def _misfits(page: Page, where: str) -> list[str]:
    cut = [f"{where}: {text} is cut" for text in page.evaluate(CUT)]
    return [*cut, f"{where}: reaches beyond the edge"] if page.evaluate(OVERFLOW) > 1 else cut


def _lasting(page: Page, find: Callable[[], list[str]], looks: int = 20) -> list[str]:
    """What is found again and again: charts take a moment to follow a new width, longer on a busy machine."""
    found: list[str] = []
    for _ in range(looks):
        page.wait_for_timeout(300)
        found = find()
        if not found:
            break
    return found


POINTS = """() => JSON.stringify([...document.querySelectorAll('.js-plotly-plot')]
    .find(chart => chart.offsetWidth > 0)?.data?.[0].x.slice(-1))"""
"""The newest point of the first chart that is seen."""


def test_a_paused_page_stands_still_and_says_since_when(page: Page, dashboard_url: str, lasting: Any) -> None:
    """Until the reader lets it go on."""
    page.goto(f"{dashboard_url}/latency?range=2+min")
    expect(page.get_by_text(re.compile(r"^Updated \d s ago"))).to_be_visible(timeout=DRAWN_MS)
    expect(seen_charts(page).first).to_be_visible(timeout=DRAWN_MS)
    page.get_by_text("Pause the refresh").click()
    expect(page.get_by_text(re.compile(r"^Paused: updated ([7-9]|\d\d) s ago"))).to_be_visible(timeout=DRAWN_MS)
    held = page.evaluate(POINTS)
    page.wait_for_timeout(6000)
    assert page.evaluate(POINTS) == held
    page.get_by_text("Pause the refresh").click()
    page.wait_for_function(f"before => ({POINTS})() !== before", arg=held, timeout=DRAWN_MS)


CHART = "[...document.querySelectorAll('.js-plotly-plot')].find(chart => chart.offsetWidth > 0)"
SPAN = f"() => JSON.stringify({CHART}.layout.xaxis.range)"


def drag(page: Page, *, wait_for: Callable[[], object] = lambda: None) -> None:
    """Drag over the middle of the first chart, and hold on until something has come."""
    area = seen_charts(page).first.locator(".nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    across = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], across)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], across, steps=5)
    wait_for()
    page.mouse.move(box["x"] + 0.7 * box["width"], across, steps=5)
    page.mouse.up()


def test_a_zoom_and_a_hidden_curve_last_while_the_data_change(page: Page, dashboard_url: str, lasting: Any) -> None:
    """Until the reader asks for the whole again, by the button or a double click."""
    page.goto(f"{dashboard_url}/?range=2+min")
    expect(seen_charts(page).first).to_be_visible(timeout=DRAWN_MS)
    expect(page.get_by_role("button", name="Reset zoom")).to_have_count(0)
    first = seen_charts(page).first
    first.locator(".legendtoggle").first.click()
    page.wait_for_function(f"() => {CHART}.data[0].visible === 'legendonly'", timeout=LIVE_MS)
    drag(page)
    button = page.get_by_role("button", name="Reset zoom")
    expect(button).to_be_visible(timeout=LIVE_MS)
    zoomed = page.evaluate(SPAN)
    for _ in range(3):
        page.wait_for_function(f"before => ({POINTS})() !== before", arg=page.evaluate(POINTS), timeout=DRAWN_MS)
        assert page.evaluate(SPAN) == zoomed
    assert page.evaluate(f"() => {CHART}.data[0].visible") == "legendonly"
    button.click()
    page.wait_for_function(f"before => ({SPAN})() !== before", arg=zoomed, timeout=LIVE_MS)
    expect(button).to_be_hidden()
    drag(page)
    expect(button).to_be_visible(timeout=LIVE_MS)
    first.locator(".nsewdrag").dblclick()
    expect(button).to_be_hidden(timeout=LIVE_MS)


def test_a_span_that_was_zoomed_into_becomes_the_range_of_all_pages(
    page: Page, dashboard_url: str, lasting: Any
) -> None:
    """At a click, in whole minutes around it, and in the address."""
    page.goto(f"{dashboard_url}/?range=10+min")
    expect(seen_charts(page).first).to_be_visible(timeout=DRAWN_MS)
    drag(page)
    begin, end = json.loads(page.evaluate(SPAN))
    page.get_by_role("button", name="Show this span").click()
    expect(page).to_have_url(re.compile(r"\?from=.*&to="), timeout=LIVE_MS)
    chosen = parse_qs(urlsplit(page.url).query)
    since, until = (chosen[name][0].replace("T", " ").removesuffix("Z") for name in ("from", "to"))
    assert since <= begin < end <= f"{until}:00"
    assert since[:16] == begin[:16]
    expect(page.get_by_role("button", name="Reset zoom")).to_have_count(0)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Latency").click()
    expect(page).to_have_url(re.compile(r"/latency\?.*from="), timeout=LIVE_MS)


def test_a_zoom_is_not_lost_to_a_change_that_comes_while_it_is_dragged(
    page: Page, dashboard_url: str, lasting: Any
) -> None:
    """What changes meanwhile is drawn when the reader lets go."""
    page.goto(f"{dashboard_url}/?range=2+min")
    expect(seen_charts(page).first).to_be_visible(timeout=DRAWN_MS)
    shown: list[str] = []

    def come() -> None:
        shown.append(page.evaluate(POINTS))
        page.wait_for_timeout(6000)
        assert page.evaluate(POINTS) == shown[0], "the chart stands still meanwhile"
        expect(page.locator(".zoombox").first).to_be_visible()

    drag(page, wait_for=come)
    expect(page.get_by_role("button", name="Reset zoom")).to_be_visible(timeout=LIVE_MS)
    zoomed = page.evaluate(SPAN)
    page.wait_for_function(f"before => ({POINTS})() !== before", arg=shown[0], timeout=LIVE_MS)
    assert page.evaluate(SPAN) == zoomed


def test_the_navigation_leads_to_every_page(page: Page, dashboard_url: str) -> None:
    """Links in the sidebar, as an operator uses them."""
    page.goto(dashboard_url)
    for title in reversed(PAGES.values()):
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=title, exact=False).click()
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=DRAWN_MS)
    assert_no_error_box(page)


def test_numbers_change_while_one_looks_on(page: Page, dashboard_url: str, lasting: Any) -> None:
    """A change in the queue is on the screen within seconds, without a click."""
    page.goto(dashboard_url)
    expect(metric(page, "Waiting")).to_have_text("137", timeout=DRAWN_MS)
    lasting.world.waiting = 4321
    expect(metric(page, "Waiting")).to_have_text("4,321", timeout=LIVE_MS)
    expect(page.get_by_text(re.compile(r"more wait"))).to_be_visible()
    lasting.world.waiting = 137
    expect(metric(page, "Waiting")).to_have_text("137", timeout=LIVE_MS)


def test_a_controller_that_goes_and_comes_back_is_shown(page: Page, dashboard_url: str, lasting: Any) -> None:
    """Said within seconds, with what to do; healed without a reload; history is readable meanwhile."""
    page.goto(dashboard_url)
    expect(metric(page, "Waiting")).to_be_visible(timeout=DRAWN_MS)
    lasting.stop()
    expect(page.get_by_text("The controller does not answer")).to_be_visible(timeout=LIVE_MS)
    expect(page.get_by_text("controller not reachable")).to_be_visible(timeout=LIVE_MS)
    expect(metric(page, "Waiting")).to_have_count(0, timeout=LIVE_MS)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="History").click()
    expect(metric(page, "Requests")).to_be_visible(timeout=DRAWN_MS)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Now").click()
    lasting.start()
    expect(metric(page, "Waiting")).to_be_visible(timeout=LIVE_MS)
    expect(page.get_by_text("The controller does not answer")).to_have_count(0, timeout=LIVE_MS)
    assert_no_error_box(page)


def test_a_request_opens_from_the_queue_and_from_its_address(page: Page, dashboard_url: str) -> None:
    """A click on a row of the queue leads to the request's page, whose address can be kept and opened again."""
    page.goto(dashboard_url)
    waiting, running = page.get_by_test_id("stDataFrame").first, page.get_by_test_id("stDataFrame").nth(1)
    expect(running).to_be_visible(timeout=DRAWN_MS)
    heading = page.get_by_role("heading", name="Request", exact=True)
    for _ in range(5):  # A table that is being drawn anew takes no click.
        waiting.click(position={"x": 15, "y": 52})
        with contextlib.suppress(AssertionError):
            expect(heading).to_be_visible(timeout=LIVE_MS / 3)
            break
    expect(heading).to_be_visible()
    expect(page).to_have_url(re.compile(r"/request\?request=cmpl-"), timeout=LIVE_MS)
    address = page.url
    expect(page.get_by_text("Before it, 5 requests that arrived later started.")).to_be_visible(timeout=LIVE_MS)
    page.goto(f"{dashboard_url}/request?request=nobody")
    expect(page.get_by_text("This request is not known")).to_be_visible(timeout=DRAWN_MS)
    page.goto(address)
    expect(metric(page, "Preemptions")).to_have_text("1", timeout=DRAWN_MS)
    expect(seen_charts(page)).to_have_count(5, timeout=DRAWN_MS)
    assert_no_error_box(page)


def test_service_says_the_verdict_and_draws_it(page: Page, dashboard_url: str) -> None:
    """Verdict, figures, four charts and three tables; nothing lies beyond the edge of a narrow window."""
    page.goto(f"{dashboard_url}/service")
    expect(page.get_by_text("chat misses its objective")).to_be_visible(timeout=DRAWN_MS)
    expect(metric(page, "Error budget left")).to_have_text("20× spent", timeout=DRAWN_MS)
    expect(seen_charts(page)).to_have_count(4, timeout=DRAWN_MS)
    expect(page.get_by_test_id("stDataFrame")).to_have_count(3, timeout=DRAWN_MS)
    page.set_viewport_size({"width": 480, "height": 900})
    expect(seen_charts(page).first).to_be_visible(timeout=DRAWN_MS)
    wide = "document.documentElement.scrollWidth > window.innerWidth"
    page.wait_for_function(f"!({wide})", timeout=LIVE_MS)
    page.set_viewport_size({"width": 1440, "height": 1000})
    assert_no_error_box(page)


def test_sql_runs_and_a_forbidden_statement_is_refused(page: Page, dashboard_url: str) -> None:
    """As typed by an operator; the answer can be downloaded."""
    page.goto(f"{dashboard_url}/sql")
    editor = page.get_by_role("textbox", name="Statement")
    expect(editor).to_be_visible(timeout=DRAWN_MS)
    editor.fill("SELECT count(*) AS outcomes FROM outcomes")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text(re.compile(r"1 row in"))).to_be_visible(timeout=DRAWN_MS)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert download.value.path().read_text().splitlines() == ['"outcomes"', "1"]
    editor.fill("DELETE FROM outcomes")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("The statement was refused")).to_be_visible(timeout=DRAWN_MS)
    assert_no_error_box(page)


def test_filters_hold_from_page_to_page_and_in_the_address(page: Page, dashboard_url: str) -> None:
    """Chosen by the address, still there after a click in the navigation."""
    page.goto(f"{dashboard_url}/latency?range=5+min")
    expect(page.get_by_text("in the last 5 min")).to_be_visible(timeout=DRAWN_MS)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Predictions").click()
    expect(page.get_by_role("heading", name="Predictions", exact=True)).to_be_visible(timeout=DRAWN_MS)
    expect(page).to_have_url(re.compile(r"/predictions\?.*range=5"), timeout=LIVE_MS)
    assert_no_error_box(page)


def test_filters_hold_for_who_clicks_before_the_page_is_whole(page: Page, dashboard_url: str) -> None:
    """The browser has not fetched what a choice is made of, and so cannot say what is chosen."""
    page.route(re.compile("/static/js/Selectbox"), lambda _: None)
    page.add_init_script("""
        const watcher = new MutationObserver(() => {
            const next = document.querySelector('[data-testid="stSidebarNav"] a[href$="/predictions"]');
            if (next && document.body.innerText.includes("in the last 5 min")) {
                watcher.disconnect();
                next.click();
            }
        });
        watcher.observe(document, {childList: true, subtree: true, characterData: true});
    """)
    page.goto(f"{dashboard_url}/latency?range=5+min")
    expect(page.get_by_role("heading", name="Predictions", exact=True)).to_be_visible(timeout=DRAWN_MS)
    expect(page).to_have_url(re.compile(r"/predictions\?.*range=5"), timeout=LIVE_MS)


def test_a_mode_is_switched_behind_a_confirmation(page: Page, dashboard_url: str, lasting: Any) -> None:
    """The order reaches the controller with its reason, and the page shows the new mode."""
    page.goto(f"{dashboard_url}/settings")
    page.get_by_text("Switch the mode of all engines").click()
    button = page.get_by_role("button", name="Switch to off")
    expect(button).to_be_disabled(timeout=DRAWN_MS)
    page.get_by_label("Reason").fill("incident 42")
    page.get_by_label("Reason").press("Tab")
    page.get_by_text("I want all engines to go back").click()
    expect(button).to_be_enabled(timeout=LIVE_MS)
    button.click()
    expect(page.get_by_text("off: first come, first served")).to_be_visible(timeout=LIVE_MS)
    for _ in range(LIVE_MS // 100):
        if lasting.world.orders:
            break
        page.wait_for_timeout(100)
    assert lasting.world.orders[-1] == {"mode": "off", "reason": "incident 42"}
    lasting.world.mode = "on"
    assert_no_error_box(page)
