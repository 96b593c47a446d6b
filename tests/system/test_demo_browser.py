import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAGES = {
    "": "Now", "predictions": "Predictions", "latency": "Latency", "request": "Request", "history": "History"
}  # fmt: skip
DRAWN_MS = 90_000
LIVE_MS = 60_000


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """The address that a running demo prints for its dashboard; the demo ends with the test."""
    command = [sys.executable, "-m", "controller", "demo", "--store", str(tmp_path / "history")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        try:
            lines = []
            for line in demo.stdout:
                lines.append(line)
                if "connected" in line:
                    break
            [address] = re.findall(r"^dashboard\s+(\S+)", "".join(lines), re.MULTILINE)
            yield address
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(timeout=60)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A tab of a real Chromium with a fresh profile."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "Chromium is not installed: run 'make browser'"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=chromium, args=list(FLAGS), viewport={"width": 1440, "height": 1000}
        )
        yield context.pages[0]
        context.close()


def test_a_browser_shows_the_running_demo(dashboard: str, page: Page) -> None:
    """Engine, controller, store and dashboard as an operator starts them: every page draws, and numbers move."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(dashboard)
    page.get_by_text("mode on").first.wait_for(timeout=DRAWN_MS)
    _predictions_rise(page, dashboard)
    for path, title in PAGES.items():
        page.goto(f"{dashboard}/{path}")
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=DRAWN_MS)
        drawn = page.get_by_test_id("stPlotlyChart").or_(page.get_by_test_id("stDataFrame"))
        expect(drawn.first).to_be_visible(timeout=DRAWN_MS)
        expect(page.get_by_test_id("stException")).to_have_count(0)
    _a_request_is_explained(page, dashboard)
    assert errors == []


def _a_request_is_explained(page: Page, dashboard: str) -> None:
    """One of the requests that the demo serves, by the name that its client gave it, from arrival to end."""
    page.goto(f"{dashboard}/request?request=request-3")
    expect(page.get_by_role("heading", name="In words")).to_be_visible(timeout=DRAWN_MS)
    expect(page.get_by_text(re.compile(r"It arrived at .* with a prompt of"))).to_be_visible()
    expect(page.get_by_text(re.compile(r"It ended .* after its arrival"))).to_be_visible(timeout=LIVE_MS)
    expect(page.get_by_test_id("stPlotlyChart")).to_have_count(5, timeout=LIVE_MS)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def _predictions_rise(page: Page, dashboard: str) -> None:
    """The count of predictions that the page shows goes up while one looks on, without a click."""
    page.goto(f"{dashboard}/predictions")
    value = page.get_by_test_id("stMetric").filter(has_text="Predictions").get_by_test_id("stMetricValue").first
    expect(value).to_have_text(re.compile(r"^[1-9][\d,]*$"), timeout=DRAWN_MS)
    shown = value.inner_text()
    expect(value).not_to_have_text(shown, timeout=LIVE_MS)
    assert int(value.inner_text().replace(",", "")) > int(shown.replace(",", ""))
