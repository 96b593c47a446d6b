"""The dashboard before a real Chromium: under another name, for other pages, with a login; and whom both talk to."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import Arrived

Run: TypeAlias = Callable[..., AbstractContextManager[str]]
DRAWN_MS = 60_000
expect.set_options(timeout=DRAWN_MS)
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

TOKEN, READ_TOKEN = "zebra-token-0123456789abcdef", "mouse-token-0123456789abcdef"
TOKENS = {"SAGESCHED_HTTP__TOKEN": TOKEN, "SAGESCHED_HTTP__READ_TOKEN": READ_TOKEN}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
WATCH = """
import atexit, os, sys

CALLS = {"socket.connect": lambda event: event[1], "socket.getaddrinfo": lambda event: event[0]}

def note(name, event):
    if name in CALLS:
        with open(os.environ["WATCH_CALLS"], "a") as log:
            log.write(f"{CALLS[name](event)!r}\\n")

sys.addaudithook(note)
"""
"""A ``sitecustomize`` that notes every address that the process connects to or looks up."""


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Start Chromium, whose network log is ``net.json`` once it is closed; names that no rule maps are not found."""
    executable = shutil.which("chromium")
    assert executable is not None, "Chromium is not installed: run 'make browser'"
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())

        def start(*rules: str) -> Browser:
            mapped = ", ".join((*rules, "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"))
            flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
            log = f"--log-net-log={tmp_path}/net.json"
            arguments = [*flags, "--disable-component-update", "--disable-sync", log, f"--host-resolver-rules={mapped}"]
            browser = playwright.chromium.launch(executable_path=executable, args=arguments)
            stack.callback(browser.close)
            return browser

        yield start


def opened(browser: Browser) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.set_default_timeout(DRAWN_MS)
    return page


def test_a_name_that_is_pointed_at_this_machine_drives_nothing(
    standing: Any, recorded: Path, run_dashboard: Run, chromium: Callable[..., Browser]
) -> None:
    """DNS rebinding: the same port under the page's own name gives neither the page nor a websocket."""
    with run_dashboard(standing.url, recorded) as url:
        port = urlsplit(url).port
        page = opened(chromium("MAP evil.example 127.0.0.1"))
        answer = page.goto(f"http://evil.example:{port}/settings")
        assert answer is not None
        assert answer.status == 403
        assert websocket_opens(page, f"ws://evil.example:{port}/_stcore/stream") is False
        page.goto(f"{url}/settings")
        expect(page.get_by_role("heading", name="Settings and health", exact=True)).to_be_visible()
    assert standing.world.orders == []


def websocket_opens(page: Page, address: str) -> bool:
    opens: bool = page.evaluate(
        """address => new Promise(answer => {
            const socket = new WebSocket(address, ['streamlit']);
            socket.onopen = () => answer(true);
            socket.onerror = () => answer(false);
        })""",
        address,
    )
    return opens


class OtherServer(BaseHTTPRequestHandler):
    """A web page of somebody else's on this machine."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>other</title>")

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def other_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), OtherServer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_page_of_another_server_on_this_machine_drives_nothing(
    standing: Any, recorded: Path, run_dashboard: Run, chromium: Callable[..., Browser], other_server: str
) -> None:
    """It opens no websocket, frames no page and fetches nothing."""
    with run_dashboard(standing.url, recorded) as url:
        page = opened(chromium())
        page.goto(other_server)
        assert websocket_opens(page, f"{url.replace('http', 'ws')}/_stcore/stream") is False
        statuses: list[int] = []
        page.on("response", lambda answer: statuses.append(answer.status) if answer.url.startswith(url) else None)
        page.evaluate(
            """url => new Promise(done => {
                const frame = document.createElement('iframe');
                frame.src = url; frame.onload = done; document.body.append(frame);
                fetch(url + '/_stcore/host-config', {mode: 'no-cors'});
            })""",
            url,
        )
        page.wait_for_timeout(1000)
        assert set(statuses) == {403}
        link = page.goto(f"{url}/history")
        assert link is not None
        assert link.status == 200


def test_nobody_else_is_called(
    standing: Any, recorded: Path, run_dashboard: Run, chromium: Callable[..., Browser], tmp_path: Path
) -> None:
    """Neither by the process, from its start through every page, nor by the browser; by Chromium's own log of its network."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    calls = tmp_path / "calls"
    environment = {"WATCH_CALLS": str(calls), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    environment |= {**TOKENS, "SAGESCHED_DASHBOARD_NAMES": "dash.example"}
    with run_dashboard(standing.url, recorded, "--host", "0.0.0.0", environment=environment) as url:
        browser = chromium()
        page = opened(browser)
        logged_in(page, url, TOKEN)
        for path, title in (("", "Now"), ("latency", "Latency"), ("sql", "SQL"), ("settings", "Settings and health")):
            page.goto(f"{url}/{path}?range=all")
            expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
            page.wait_for_timeout(1500)
        assert fetched_elsewhere(page) is False
        browser.close()
    asked = calls.read_text().splitlines()
    assert any(f"'127.0.0.1', {urlsplit(standing.url).port}" in call for call in asked)
    assert [call for call in asked if not re.search(r"127\.0\.0\.1|localhost|::1|^'/|None|0\.0\.0\.0", call)] == []
    log = json.loads((tmp_path / "net.json").read_text())
    # Chromium asks Google's servers for things of its own; what the page asks for has the page as its initiator.
    started = [event["params"] for event in log["events"] if "initiator" in event.get("params", {})]
    requests = {params["url"] for params in started if params["initiator"] == url}
    hosts = {urlsplit(address).hostname for address in requests if address.startswith(("http", "ws"))}
    assert hosts & LOOPBACK
    assert hosts - LOOPBACK == set()


def fetched_elsewhere(page: Page) -> bool:
    """Whether the page may fetch something from another host; its policy says no before a name is looked up."""
    allowed: bool = page.evaluate(
        """() => new Promise(answer => {
            document.addEventListener('securitypolicyviolation', () => answer(false));
            fetch('https://elsewhere.example/').then(() => answer(true), () => null);
        })"""
    )
    return allowed


def logged_in(page: Page, url: str, token: str, name: str = "") -> None:
    page.goto(f"{url}/login?next=%2Fsettings")
    page.get_by_label("Token").fill(token)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(re.compile("/settings"))


def test_people_log_in_and_see_what_they_may(
    standing: Any, recorded: Path, run_dashboard: Run, chromium: Callable[..., Browser]
) -> None:
    """A page leads to the login and back; who may look cannot switch, who may switch is named to the controller."""
    with run_dashboard(standing.url, recorded, environment=TOKENS) as url:
        page = opened(chromium())
        page.goto(f"{url}/settings?range=all")
        expect(page).to_have_url(re.compile(r"/login\?next=%2Fsettings"))
        assert not [
            found for found in Axe().run(page).response["violations"] if found["impact"] in {"serious", "critical"}
        ]
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("This token is not valid.")).to_be_visible()
        page.get_by_label("Token").fill(READ_TOKEN)
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(r"/settings\?range=all"))
        page.get_by_text("Switch the mode of all engines").click()
        expect(page.get_by_text("This login can view and not switch")).to_be_visible()
        expect(page.get_by_text("Logged in: can view")).to_be_visible()
        page.get_by_role("link", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        logged_in(page, url, TOKEN, "Ada")
        expect(page.get_by_text("Logged in as Ada: can view and switch modes")).to_be_visible()
        page.get_by_text("Switch the mode of all engines").click()
        page.get_by_label("Reason").fill("drill")
        page.get_by_label("Reason").press("Tab")
        page.get_by_text("I want all engines").click()
        page.get_by_role("button", name="Switch to off").click()
        expect(page.get_by_text("Requested mode: off")).to_be_visible()
    assert standing.world.orders == [{"mode": "off", "reason": "drill", "who": "Ada"}]


def test_a_page_that_is_open_ends_with_its_session(
    standing: Any, recorded: Path, run_dashboard: Run, chromium: Callable[..., Browser]
) -> None:
    """Logging out in one tab ends what the others draw again by themselves."""
    with run_dashboard(standing.url, recorded, environment=TOKENS) as url:
        first = opened(chromium())
        logged_in(first, url, TOKEN, "Ada")
        other = first.context.new_page()
        other.set_default_timeout(DRAWN_MS)
        other.goto(url)
        expect(other.get_by_text("engines connected").first).to_be_visible()
        first.goto(f"{url}/logout")
        expect(other.get_by_text("Nobody is logged in here: load this page again.").first).to_be_visible()
        expect(other.get_by_text("engines connected")).to_have_count(0)


def test_stored_prompts_are_not_shown_without_a_login(
    standing: Any, recorded: Path, run_dashboard: Run, chromium: Callable[..., Browser], tmp_path: Path
) -> None:
    """As soon as the controller says that it stores them or the history holds one, whatever the dashboard was started with."""
    said = standing.world.health | {"configuration": [{"key": "store.prompts", "value": "True", "meaning": ""}]}
    kept = tmp_path / "kept"
    arrived = Arrived(
        request_id="r", arrival_s=1.0, prompt_tokens=1, token_ids=b"\0\0\0\0", max_tokens=9, temperature=1.0
    )
    with HistoryWriter(kept, store_prompts=True) as writer:
        writer.append([Entry(engine_id="e", session_id="s", batch=1, record=arrived)])
    for store, health in ((recorded, said), (kept, standing.world.health)):
        standing.world.health = health
        with run_dashboard(standing.url, store) as url:
            page = opened(chromium())
            page.goto(f"{url}/prompts")
            expect(page.get_by_text("Prompts are stored, and this dashboard has no login")).to_be_visible()
            expect(page.get_by_role("heading", name="Prompts", exact=True)).to_have_count(0)


def test_tables_offer_no_export_of_text_as_it_is(
    standing: Any, recorded: Path, run_dashboard: Run, chromium: Callable[..., Browser]
) -> None:
    """Streamlit's own CSV holds formulas that clients chose; the page SQL has one that does not."""
    with run_dashboard(standing.url, recorded) as url:
        page = opened(chromium())
        page.goto(f"{url}/sql")
        table = page.get_by_test_id("stDataFrame").first
        expect(table).to_be_visible()
        table.hover()
        expect(page.get_by_label("Search").first).to_be_visible()
        expect(page.get_by_label("Download as CSV").first).to_be_hidden()
