"""Pictures of the dashboard, taken from a running demo: ``make screenshots``, ``ARGS="FOLDER"`` for all of them.

The animation shows the page *Now* from the demo's start until after the switch to mode `on`. The documents' few pictures
and the animation go into ``docs/images``, light and dark. Every page is also taken light and dark at three sizes (a
laptop, a desk, a wall) into the folder, to be looked at.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

Scheme = Literal["light", "dark"]

IMAGES = Path(__file__).parent / "images"
PAGES = {
    page: page for page in ("latency", "service", "gain", "predictions", "prompts", "history", "sql", "settings")
} | {
    "now": "",
    "request": "request?request=request-1000",
}
SHOWN = ("now", "latency", "gain", "predictions")
"""Pages that the documents show."""
SIZES = {"laptop": (1366, 768), "desk": (1440, 1000), "wall": (2560, 1440)}
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
SETTLE_MS = 4000
COLORS = 128
"""Colours of a picture in the documents; a third of the bytes, and no difference that is seen."""

FILM_SIZE = (1280, 800)
FILM_WIDTH = 960
FILM_S = 100.0
FRAME_S = 2.5
FRAME_SHOWN_MS = 350
LAST_SHOWN_MS = 3000
FILM_QUALITY = 50
FILM_BYTES = 1_500_000
"""Largest size of the animation, so that a README loads quickly."""

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
DRAWN = ".js-plotly-plot:visible, [data-testid=stDataFrame]:visible, [data-testid=stAlert]:visible"


def main() -> None:
    """Run a demo, film its start, take every page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="where all of them go (default: a new one)")
    others: Path = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="sagesched-pictures-"))
    others.mkdir(parents=True, exist_ok=True)
    with _demo() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme, frames in film(browser, address).items():
            write_film(frames, IMAGES / f"demo-{scheme}.webp")
        for scheme in SCHEMES:
            _take_all(browser, scheme, address, others)
        browser.close()
    for name in SHOWN:
        for scheme in SCHEMES:
            write_picture(others / f"{name}-{scheme}-desk.png", IMAGES / f"{name}-{scheme}.png")
    sys.stdout.write(f"kept in {IMAGES}: demo, {', '.join(SHOWN)}; all of them in {others}\n")


def film(browser: Browser, address: str) -> dict[Scheme, list[Image.Image]]:
    """The page *Now* every few seconds, light and dark."""
    width, height = FILM_SIZE
    pages = {
        scheme: browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}).new_page()
        for scheme in SCHEMES
    }
    for page in pages.values():
        page.goto(address)
        page.locator(DRAWN).first.wait_for(timeout=180_000)
    frames: dict[Scheme, list[Image.Image]] = {scheme: [] for scheme in SCHEMES}
    started_s = time.monotonic()
    while (elapsed_s := time.monotonic() - started_s) < FILM_S:
        for scheme, page in pages.items():
            frames[scheme].append(_frame(page))
        pages[SCHEMES[0]].wait_for_timeout(max(0.0, FRAME_S - (time.monotonic() - started_s - elapsed_s)) * 1e3)
    for page in pages.values():
        page.context.close()
    return frames


def write_film(frames: list[Image.Image], path: Path) -> None:
    """Write frames as an animated WebP that repeats.

    Raises:
        SystemExit: The file is larger than `FILM_BYTES`.
    """
    shown_ms = [FRAME_SHOWN_MS] * (len(frames) - 1) + [LAST_SHOWN_MS]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=shown_ms, loop=0, quality=FILM_QUALITY, method=6
    )
    if path.stat().st_size > FILM_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes: lower FILM_WIDTH or FILM_QUALITY")


def write_picture(taken: Path, path: Path) -> None:
    """Write a screenshot with few colours, which a dashboard does not miss."""
    with Image.open(taken) as picture:
        picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def _demo() -> Iterator[str]:
    """A demo with a history of its own; gives the address of its dashboard."""
    store = tempfile.mkdtemp(prefix="sagesched-pictures-store-")
    command = [sys.executable, "-P", "-m", "controller", "demo", "--store", store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        try:
            yield _dashboard_address(demo)
        finally:
            demo.terminate()
    shutil.rmtree(store, ignore_errors=True)


def _dashboard_address(demo: subprocess.Popen[str]) -> str:
    assert demo.stdout is not None
    address = ""
    for line in demo.stdout:
        if found := re.match(r"dashboard\s+(\S+)", line):
            address = found[1]
        if "connected" in line:
            return address
    raise SystemExit("the demo did not start: run it by hand to see why")


def _take_all(browser: Browser, scheme: Scheme, address: str, folder: Path) -> None:
    context = browser.new_context(color_scheme=scheme, viewport=_viewport("desk"))
    page = context.new_page()
    for name, path in PAGES.items():
        _take(page, f"{address}/{path}", folder, f"{name}-{scheme}")
    context.close()


def _take(page: Page, url: str, folder: Path, name: str) -> None:
    page.goto(url)
    page.locator(DRAWN).first.wait_for(timeout=180_000)
    for size in SIZES:
        page.set_viewport_size(_viewport(size))
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=folder / f"{name}-{size}.png")


def _frame(page: Page) -> Image.Image:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return picture.resize((FILM_WIDTH, round(picture.height * FILM_WIDTH / picture.width)), Image.Resampling.LANCZOS)


def _viewport(size: str) -> ViewportSize:
    width, height = SIZES[size]
    return {"width": width, "height": height}


if __name__ == "__main__":
    main()
