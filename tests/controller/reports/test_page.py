import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from controller.reports.page import heading, plot, write_page


@pytest.mark.browser
def test_a_page_draws_its_plots_from_itself_alone(tmp_path: Path) -> None:
    """In a real browser, from a file, with nothing fetched; and it is not much larger than Plotly compressed."""
    path = tmp_path / "report.html"
    first, second = plot("first & <b>", "x", "y"), plot("second", "x", "y")
    for figure in (first, second):
        figure.add_scatter(x=[1, 2], y=[3, 4])
    write_page(path, title="Report <i>", about="Two plots.", parts=[heading("One"), first, second])
    assert path.stat().st_size < 2_500_000
    problems: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        expect(page.locator(".plotly-graph-div .scatterlayer path.js-line")).to_have_count(2, timeout=30_000)
        expect(page.get_by_role("heading", name="Report <i>")).to_be_visible()
        browser.close()
    assert problems == []
    assert [url for url in asked if not re.match(r"file:|blob:|data:", url)] == []


def test_a_page_without_plots_has_no_library(tmp_path: Path) -> None:
    """Tables alone are small."""
    path = tmp_path / "report.html"
    write_page(path, title="Report", about="Nothing to draw.", parts=[heading("One")])
    assert path.stat().st_size < 2000
