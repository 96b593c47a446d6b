"""Pictures of the dashboard, taken from a running demo: ``make screenshots`` takes the documents' into docs/images.

The animation shows the page *Now* from the demo's start until after the switch to mode `on`; the few pictures are
taken light and dark. With ``ARGS="FOLDER"`` every page is taken at three sizes (a laptop, a desk, a wall) into the
folder instead, to be looked at.
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
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

Scheme = Literal["light", "dark"]

IMAGES = Path(__file__).parent / "images"
PAGES = {
    page: page for page in ("latency", "service", "gain", "predictions", "prompts", "history", "sql", "settings")
} | {
    "glossary": "glossary",
    "now": "",
    "request": "request?request=request-1000",
}
SHOWN = ("latency", "gain", "predictions")
"""Pages that the documents show."""
SIZES = {"laptop": (1366, 768), "desk": (1440, 1000), "wall": (2560, 1440)}
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
SETTLE_MS = 6000
COLORS = 128
"""Colours of a picture in the documents; a third of the bytes, and no difference that is seen."""

FILM_SIZE = (1440, 900)
FILM_WIDTH = 960
FILM_S = 120.0
FRAME_S = 2.5
FRAME_SHOWN_MS = 350
LAST_SHOWN_MS = 3000
FILM_QUALITY = 50
FILM_BYTES = 1_500_000
"""Largest size of the animation, so that a README loads quickly."""

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CHART = "[data-testid=stMain] .js-plotly-plot .main-svg:visible"
DRAWN = ", ".join(
    f"[data-testid=stMain] {part}:visible"
    for part in (
        ".js-plotly-plot .main-svg",
        "[data-testid=stDataFrame]",
        "[data-testid=stAlert]",
        "[data-testid=stTable]",
    )
)
READING = (
    "[data-testid=stSkeleton]:visible, [data-testid=stMain] [data-stale=true]:visible, "
    "[data-testid=stMain] .sage-chart:visible:not(:has(.main-svg))"
)
"""What a page shows while it still reads or draws."""


def main() -> None:
    """Run a demo, film its start, take the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="take every page at every size, into this folder")
    folder: Path | None = parser.parse_args().folder
    with _demo() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        frames = film(browser, address)  # For all pages too: by then the demo has served enough for each.
        if folder is None:
            write_film(frames, IMAGES / "demo.webp")
        for scheme in SCHEMES:
            if folder is None:
                _take_shown(browser, scheme, address)
            else:
                _take_all(browser, scheme, address, folder)
        browser.close()


def film(browser: Browser, address: str) -> list[Image.Image]:
    """The page *Now* every few seconds."""
    width, height = FILM_SIZE
    frames = []
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        page = context.new_page()
        _open(page, address)
        started_s = time.monotonic()
        while (elapsed_s := time.monotonic() - started_s) < FILM_S:
            frames.append(_frame(page))
            page.wait_for_timeout(max(0.0, FRAME_S - (time.monotonic() - started_s - elapsed_s)) * 1e3)
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


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a screenshot with few colours, which a dashboard does not miss."""
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


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


def _take_shown(browser: Browser, scheme: Scheme, address: str) -> None:
    with browser.new_context(color_scheme=scheme, viewport=_viewport("desk")) as context:
        page = context.new_page()
        for name in SHOWN:
            _open(page, f"{address}/{PAGES[name]}", CHART)
            page.wait_for_timeout(SETTLE_MS)
            expect(page.locator(READING)).to_have_count(0, timeout=180_000)
            write_picture(_picture(page), IMAGES / f"{name}-{scheme}.png")


def _take_all(browser: Browser, scheme: Scheme, address: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with browser.new_context(color_scheme=scheme, viewport=_viewport("desk")) as context:
        page = context.new_page()
        for name, path in PAGES.items():
            _open(page, f"{address}/{path}")
            for size in SIZES:
                page.set_viewport_size(_viewport(size))
                page.wait_for_timeout(SETTLE_MS)
                page.screenshot(path=folder / f"{name}-{scheme}-{size}.png")


def _open(page: Page, url: str, awaited: str = DRAWN) -> None:
    page.goto(url)
    page.locator(awaited).first.wait_for(timeout=180_000)
    expect(page.locator(READING)).to_have_count(0, timeout=180_000)


def _picture(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def _frame(page: Page) -> Image.Image:
    picture = _picture(page)
    return picture.resize((FILM_WIDTH, round(picture.height * FILM_WIDTH / picture.width)), Image.Resampling.LANCZOS)


def _viewport(size: str) -> ViewportSize:
    width, height = SIZES[size]
    return {"width": width, "height": height}


if __name__ == "__main__":
    main()
