"""*Now* in a real browser over real processes: an idle engine, one that melts, and one that is lost."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import httpx
import pytest
from playwright.sync_api import Locator, expect

from engine_adapter.serving.processes import free_port

pytestmark = pytest.mark.browser

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""
Visitor: TypeAlias = Any

RED_S = 15.0
"""Within this time of the queue's first growth the page is red."""
DRAWN_S = 3.0
"""The page asks once a second, and answers are shared for most of one."""


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/_stcore/health", timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def verdict(visitor: Visitor, level: str) -> Locator:
    found: Locator = visitor.page.locator(f'.sage-verdict[data-level="{level}"]')
    return found


def test_now_is_green_when_idle_and_red_in_a_melt_down(
    site: Site, visitor: Visitor, eventually: Callable[..., None]
) -> None:
    """Before its first request an engine stands there as idle; at twice what it can serve the page says so, and what to do."""
    site.start_controller()
    url = f"http://127.0.0.1:{(port := free_port(0))}"
    dashboard = [sys.executable, "-m", "dashboard", "--api", site.api.base_url, "--store", str(site.store)]
    site.start("dashboard", [*dashboard, "--port", str(port)])
    eventually(lambda: answers(url))
    visitor.address = url
    visitor.page.set_viewport_size({"width": 1440, "height": 900})
    visitor.opens("", "Now")
    expect(verdict(visitor, "amber")).to_contain_text("No engine is connected", timeout=visitor.patience_ms)
    idle = site.start_engine("--rate", "0.000001", "--engine-id", "gpu-a")
    eventually(lambda: site.engine_mode() == "on")
    row = visitor.page.locator(".sage-table tbody tr")
    expect(row).to_contain_text(re.compile("gpu-a.*idle"), timeout=visitor.patience_ms)
    expect(visitor.page.get_by_text("No engine is connected")).to_have_count(0)
    assert site.stop(idle) == 0

    site.start_engine("--load", "2", "--speed", "20", "--duration", "240", "--engine-id", "gpu-b")
    eventually(lambda: grows(site))
    began_s = time.monotonic()
    red = verdict(visitor, "red")
    expect(red).to_contain_text("Overload: more requests come than the engines serve", timeout=1000 * RED_S)
    assert time.monotonic() - began_s < RED_S
    expect(red).to_contain_text(
        re.compile(r"The queue of [\d,]+ grows .*: demand is \d\.\d of what the engines serve\.")
    )
    expect(red).to_contain_text("Send fewer requests or add an engine")
    seen = visitor.page.evaluate("document.querySelector('.sage-verdict').getBoundingClientRect().bottom")
    tiles = visitor.page.evaluate("document.querySelector('.sage-tiles').getBoundingClientRect().bottom")
    table = visitor.page.evaluate("document.querySelector('.sage-table').getBoundingClientRect().bottom")
    assert seen < tiles < table < 900, "all of it without scrolling"
    said = site.ask("/api/now")["verdict"]
    assert (said["level"], said["findings"][0]["rule"]) == ("red", "overload")
    assert visitor.errors == []


def grows(site: Site) -> bool:
    """Whether the engine's queue has begun to grow."""
    state = site.ask("/api/state")
    return any(each["snapshot"] and each["snapshot"]["waiting"] > 5 for each in state["engines"] if each["connected"])
