import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from controller.demo.demo import dashboard_command
from engine_adapter.serving.processes import free_port

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[str]:
    """The address that a running demo prints for its dashboard; the demo ends with the test."""
    command = [sys.executable, "-m", "controller", "demo", "--store", str(tmp_path / "history")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            lines = []
            for line in running.stdout:
                lines.append(line)
                if "connected" in line:
                    break
            [address] = re.findall(r"^dashboard\s+(\S+)", "".join(lines), re.MULTILINE)
            yield address
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(timeout=60)


def test_a_browser_shows_the_running_demo(demo: str, visitor: Any) -> None:
    """Engine, controller, store and dashboard as an operator starts them: data arrives on every page, and all works."""
    visitor.address = demo
    visitor.sees_numbers_move()
    visitor.sees_every_page()
    visitor.keeps_filters()
    visitor.opens_a_request_from_the_queue()
    visitor.reads_why_a_request_waited("request-3")
    visitor.asks_in_sql()
    assert visitor.errors == []


def test_a_controller_that_dies_and_returns_is_shown_as_it_happens(
    site: Any, visitor: Any, eventually: Callable[..., None]
) -> None:
    """SIGKILL of the controller under load: the page says so and what the engine does meanwhile, and heals by itself."""
    first = site.start_controller()
    site.start_engine("--profile", "h800-qwen3-32b-24k", "--speed", "4", "--rate", "6", "--seed", "3")
    eventually(lambda: site.engine_mode() == "on")
    port = free_port(0)
    site.start("dashboard", dashboard_command(site.api.base_url, site.store, port=port))
    visitor.address = f"http://127.0.0.1:{port}"
    eventually(lambda: _served(visitor.address))
    visitor.opens("", "Now")
    expect(visitor.metric("Running")).to_have_text(re.compile(r"^[1-9]"), timeout=visitor.patience_ms)
    site.kill(first)
    page = visitor.page
    expect(page.get_by_text("The controller does not answer")).to_be_visible(timeout=visitor.patience_ms)
    expect(page.get_by_text("Engines serve first come, first served until it is back")).to_be_visible()
    visitor.goes_to("History")
    expect(visitor.metric("Requests")).to_have_text(re.compile(r"^[1-9]"), timeout=visitor.patience_ms)
    site.start_controller()
    visitor.goes_to("Now")
    expect(visitor.metric("In force")).to_have_text("on", timeout=visitor.patience_ms)
    expect(page.get_by_text("The controller does not answer")).to_have_count(0, timeout=visitor.patience_ms)
    assert visitor.errors == []


def _served(address: str) -> bool:
    try:
        return httpx.get(f"{address}/_stcore/health", timeout=2.0).is_success
    except httpx.HTTPError:
        return False
