"""Pictures of the dashboard for the README, taken from a running demo: ``make screenshots``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
PAGES = {"now": ""} | {
    page: page for page in ("predictions", "latency", "gain", "prompts", "history", "sql", "settings")
}
SHOWN = {"now", "latency"}
"""Pages whose pictures are kept; the others are taken into the folder given as argument, to be looked at."""
CREST_S = 55.0
"""Seconds after which the demo's first wave has formed a queue."""
SETTLE_MS = 8000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    """Run a demo, wait for a queue, take every page."""
    others = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="sagesched-pictures-"))
    store = tempfile.mkdtemp(prefix="sagesched-pictures-store-")
    command = [sys.executable, "-m", "controller", "demo", "--duration", "150", "--store", store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:  # noqa: S603 - our own demo
        try:
            address = _dashboard_address(demo)
            time.sleep(CREST_S)
            _take_all(address, others)
        finally:
            demo.terminate()
    shutil.rmtree(store, ignore_errors=True)
    sys.stdout.write(f"kept in {IMAGES}: {', '.join(sorted(SHOWN))}; the others in {others}\n")


def _dashboard_address(demo: subprocess.Popen[str]) -> str:
    assert demo.stdout is not None
    address = ""
    for line in demo.stdout:
        if found := re.match(r"dashboard\s+(\S+)", line):
            address = found[1]
        if "connected" in line:
            return address
    raise SystemExit("the demo did not start: run it by hand to see why")


def _take_all(address: str, others: Path) -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=shutil.which("chromium"), args=FLAGS, viewport={"width": 1440, "height": 1000}
        )
        page = browser.pages[0]
        for name, path in PAGES.items():
            _take(page, f"{address}/{path}", (IMAGES if name in SHOWN else others) / f"{name}.png")
        browser.close()


def _take(page: Page, url: str, file: Path) -> None:
    page.goto(url)
    page.wait_for_selector(".js-plotly-plot, [data-testid=stDataFrame]", timeout=60_000)
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=file)


if __name__ == "__main__":
    main()
