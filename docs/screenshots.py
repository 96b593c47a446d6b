"""Pictures of the dashboard, taken from a running demo: ``make screenshots``, ``ARGS="FOLDER"`` for all of them.

Every page is taken light and dark at three sizes (a laptop, a desk, a wall) into the folder, to be looked at; the
README's few are taken into ``docs/images``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, ViewportSize, sync_playwright

IMAGES = Path(__file__).parent / "images"
PAGES = {
    page: page for page in ("latency", "service", "gain", "predictions", "prompts", "history", "sql", "settings")
} | {
    "now": "",
    "request": "request?request=request-1000",
}
SHOWN = ("now", "latency", "predictions")
"""Pages whose pictures the README has."""
SIZES = {"laptop": (1366, 768), "desk": (1440, 1000), "wall": (2560, 1440)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WAVE_S = 80.0
"""Seconds after which the demo has served enough for every page, and a queue stands."""
SETTLE_MS = 4000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
DRAWN = ".js-plotly-plot:visible, [data-testid=stDataFrame]:visible, [data-testid=stAlert]:visible"


def main() -> None:
    """Run a demo, wait for a queue, take every page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="where all of them go (default: a new one)")
    others: Path = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="sagesched-pictures-"))
    others.mkdir(parents=True, exist_ok=True)
    store = tempfile.mkdtemp(prefix="sagesched-pictures-store-")
    command = [sys.executable, "-m", "controller", "demo", "--store", store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        try:
            address = _dashboard_address(demo)
            time.sleep(WAVE_S)
            _take_all(address, others)
        finally:
            demo.terminate()
    shutil.rmtree(store, ignore_errors=True)
    sys.stdout.write(f"kept in {IMAGES}: {', '.join(SHOWN)}; all of them in {others}\n")


def _dashboard_address(demo: subprocess.Popen[str]) -> str:
    assert demo.stdout is not None
    address = ""
    for line in demo.stdout:
        if found := re.match(r"dashboard\s+(\S+)", line):
            address = found[1]
        if "connected" in line:
            return address
    raise SystemExit("the demo did not start: run it by hand to see why")


def _take_all(address: str, folder: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme in SCHEMES:
            context = browser.new_context(color_scheme=scheme, viewport=_viewport("desk"))
            page = context.new_page()
            for name, path in PAGES.items():
                _take(page, f"{address}/{path}", folder, f"{name}-{scheme}")
            context.close()
        browser.close()
    for name in SHOWN:
        shutil.copyfile(folder / f"{name}-light-desk.png", IMAGES / f"{name}.png")


def _take(page: Page, url: str, folder: Path, name: str) -> None:
    page.goto(url)
    page.locator(DRAWN).first.wait_for(timeout=180_000)
    for size in SIZES:
        page.set_viewport_size(_viewport(size))
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=folder / f"{name}-{size}.png")


def _viewport(size: str) -> ViewportSize:
    width, height = SIZES[size]
    return {"width": width, "height": height}


if __name__ == "__main__":
    main()
