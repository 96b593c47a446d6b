from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, TimeoutError, expect, sync_playwright  # noqa: A004 - Playwright's own

from controller.api.client import ApiClient
from engine_adapter.serving.processes import Child, Children, free_port
from store.errors import SageError

BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Poll; the machine may be busy, so limits are generous and the usual wait is short."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"not so after {timeout_s:g} s"
        time.sleep(0.1)


class Site:
    """One machine's worth of real processes: a controller, which may be killed and started again, and an engine."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.store = folder / "history"
        self.endpoint = f"ipc://{folder}/run/engine.sock"
        self.port = free_port(0)
        self.api = ApiClient(f"http://127.0.0.1:{self.port}")
        self._children = children

    def start_controller(self, *arguments: str) -> Child:
        command = [
            *(
                sys.executable,
                "-m",
                "controller",
                "serve",
                "--mode",
                "on",
                "--store",
                str(self.store),
                "--endpoint",
                self.endpoint,
            ),
            *("--port", str(self.port), "--seal-interval", "0.5", *arguments),
        ]
        child = self._children.start("controller", command, environment={"OMP_NUM_THREADS": "1"})
        wait_until(lambda: self.ask("/readyz") is not None)
        return child

    def start_engine(self, *arguments: str) -> Child:
        command = [
            sys.executable,
            "-m",
            "engine_adapter.serving.simulated_server",
            "--endpoint",
            self.endpoint,
            *arguments,
        ]
        return self._children.start("engine", command, environment={"OMP_NUM_THREADS": "1"})

    def start(self, name: str, command: list[str]) -> Child:
        return self._children.start(name, command)

    def ask(self, path: str) -> dict[str, Any] | None:
        try:
            return self.api.get(path)
        except SageError:
            return None

    def engine_mode(self) -> str | None:
        """The mode in force in the engine, as its last snapshot says."""
        state = self.ask("/api/state")
        snapshots = [e["snapshot"] for e in state["engines"] if e["connected"] and e["snapshot"]] if state else []
        return snapshots[0]["mode"] if snapshots else None

    def stop(self, child: Child) -> int:
        return child.end(wait_s=30.0)

    def kill(self, child: Child) -> None:
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()


def last_json(child: Child) -> dict[str, Any]:
    """The JSON object on the last line of a child's output."""
    found: dict[str, Any] = json.loads(child.last_lines(1))
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site in a folder of its own; every process ends with the test."""
    with Children(tmp_path) as children:
        site = Site(tmp_path, children)
        yield site
        site.api.close()


@pytest.fixture
def summary_of() -> Callable[[Child], dict[str, Any]]:
    return last_json


@pytest.fixture
def eventually() -> Callable[..., None]:
    return wait_until


class Visitor:
    """Somebody with a real browser who uses the dashboard; every step waits for what it needs."""

    patience_ms = 90_000
    pages = ("Now", "Latency", "Gain", "Predictions", "Prompts", "Request", "History", "SQL", "Settings and health")

    def __init__(self, page: Page) -> None:
        self.page = page
        self.address = ""
        self.errors: list[str] = []
        page.set_default_timeout(self.patience_ms)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def opens(self, path: str, title: str) -> None:
        self.page.goto(f"{self.address}/{path}")
        self._stands(title)

    def goes_to(self, title: str) -> None:
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=title, exact=False).click()
        self._stands(title)

    def metric(self, label: str) -> Locator:
        metrics = self.page.get_by_test_id("stMetric").filter(has=self.page.get_by_text(label, exact=True))
        return metrics.get_by_test_id("stMetricValue").first

    def sees_numbers_move(self) -> None:
        """The count of predictions goes up while one looks on, without a click."""
        self.opens("predictions", "Predictions")
        value = self.metric("Predictions")
        expect(value).to_have_text(re.compile(r"^[1-9][\d,]*$"), timeout=self.patience_ms)
        shown = value.inner_text()
        expect(value).not_to_have_text(shown, timeout=self.patience_ms)
        assert int(value.inner_text().replace(",", "")) > int(shown.replace(",", ""))

    def sees_every_page(self) -> None:
        """Each has something to show of what is served."""
        self.opens("settings", "Settings and health")
        for title in self.pages:
            self.goes_to(title)
            main = self.page.get_by_test_id("stMain")
            charts = main.locator(".sage-chart:has(.main-svg)").filter(visible=True)
            tables = main.get_by_test_id("stDataFrame")
            expect(charts.or_(tables).or_(main.get_by_test_id("stAlert")).first).to_be_visible(timeout=self.patience_ms)
            expect(self.page.get_by_test_id("stException")).to_have_count(0)

    def keeps_filters(self) -> None:
        """What the address says holds on the next page, and stands in its address."""
        self.opens("latency?range=5+min", "Latency")
        expect(self.page.get_by_text(re.compile("in the last 5 min"))).to_be_visible()
        self.goes_to("Predictions")
        expect(self.page).to_have_url(re.compile(r"/predictions\?.*range=5"), timeout=self.patience_ms)

    def opens_a_request_from_the_queue(self) -> None:
        """A click on a row of what waits or runs."""
        self.opens("", "Now")
        table = self.page.get_by_test_id("stDataFrame").first
        opened = re.compile(r"/request\?request=.+")
        for _ in range(6):  # A table that is being drawn anew takes no click.
            expect(table).to_be_visible(timeout=self.patience_ms)
            with contextlib.suppress(TimeoutError):
                table.click(position={"x": 15, "y": 52}, timeout=10_000)
            with contextlib.suppress(AssertionError):
                expect(self.page).to_have_url(opened, timeout=20_000)
                break
        expect(self.page).to_have_url(opened)
        expect(self.metric("State")).to_be_visible(timeout=self.patience_ms)

    def reads_why_a_request_waited(self, request_id: str) -> None:
        """From arrival to end, in words and charts."""
        self.opens(f"request?request={request_id}", "Request")
        expect(self.page.get_by_role("heading", name="In detail")).to_be_visible(timeout=self.patience_ms)
        expect(self.page.get_by_text(re.compile(r"It arrived at .* with a prompt of"))).to_be_visible()
        expect(self.page.get_by_text(re.compile(r"It ended .* after its arrival"))).to_be_visible(
            timeout=self.patience_ms
        )
        charts = self.page.locator(".sage-chart:has(.main-svg)").filter(visible=True)
        expect(charts).to_have_count(5, timeout=self.patience_ms)

    def asks_in_sql(self) -> None:
        """An answer comes; a statement that would change something is refused in clear words."""
        self.opens("sql", "SQL")
        editor = self.page.get_by_role("textbox", name="Statement")
        run = self.page.get_by_role("button", name="Run")
        editor.fill("SELECT count(*) AS requests FROM requests")
        run.click()
        expect(self.page.get_by_text(re.compile(r"1 row in"))).to_be_visible(timeout=self.patience_ms)
        editor.fill("DROP VIEW requests")
        run.click()
        expect(self.page.get_by_text("The statement was refused")).to_be_visible(timeout=self.patience_ms)

    def _stands(self, title: str) -> None:
        heading = self.page.get_by_role("heading", name=title, exact=True)
        expect(heading).to_be_visible(timeout=self.patience_ms)


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[Visitor]:
    """A visitor in a Chromium with a fresh profile; `address` says where the dashboard is."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "Chromium is not installed: run 'make browser'"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=chromium,
            args=list(BROWSER_FLAGS),
            viewport={"width": 1440, "height": 1000},
        )
        yield Visitor(context.pages[0])
        context.close()
