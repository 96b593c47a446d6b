"""How long every page of the dashboard takes to paint over a long history: ``python docs/million_requests.py``.

Writes a history of a million requests (or of as many as are asked for) into a folder, serves the dashboard on it, and
opens each page in Chromium three times with the range *all*, the first time with an empty cache.
A page is painted when the last of its charts and tables is there.
"""

from __future__ import annotations

import argparse
import http.client
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from dashboard import launch
from store.records import Arrived, EngineSeen, Entry, Finished, Hello, Outcome, Prediction
from store.writer import HistoryWriter

DAY_S = 86_400.0
CHUNK = 2000
END_S = 1_767_225_600.0
TIMES = 3
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PAGES = {
    "latency": ("stPlotlyChart", 3),
    "prompts": ("stPlotlyChart", 4),
    "history": ("stPlotlyChart", 4),
    "sql": ("stDataFrame", 1),
    "settings": ("stDataFrame", 0),
    "request": ("stPlotlyChart", 2),
}
"""Pages that read the history, and how much of what is there when they are painted."""


def main() -> None:
    """Write the history unless it is there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "sagesched-million")
    given = parser.parse_args()
    if not given.store.exists():
        write(given.store, given.requests)
    measure(given.store)


def write(store: Path, requests: int) -> None:
    """Write so many requests that ended over 30 days."""
    rng = random.Random(1)
    started_s = time.perf_counter()
    with HistoryWriter(store, seal_interval_s=60.0, retention_days=36_500.0) as writer:
        writer.append([_engine()])
        for first in range(0, requests, CHUNK):
            entries = [
                entry
                for number in range(first, min(first + CHUNK, requests))
                for entry in _life(number, END_S - 30 * DAY_S * (1 - number / requests), rng)
            ]
            while writer.stats.queued > 50_000:
                time.sleep(0.05)
            writer.append(entries)
            if first % 100_000 == 0:
                sys.stdout.write(f"{first:,} requests, {time.perf_counter() - started_s:.0f} s\n")
                sys.stdout.flush()


def _engine() -> Entry:
    hello = Hello(
        engine_id="engine-0", session_id="s", model="m", engine="simulated", engine_version="1", kv_blocks=1500,
        block_size_tokens=16, max_num_seqs=64, token_budget=2048, max_model_len_tokens=4096, prefix_caching=False,
        started_s=0.0,
    )  # fmt: skip
    seen = EngineSeen(time_s=END_S - 30 * DAY_S, event="connected", hello=hello)
    return Entry(engine_id="engine-0", session_id="s", batch=None, record=seen)


def _life(number: int, end_s: float, rng: random.Random) -> Iterator[Entry]:
    name, tokens, arrival_s = f"r{number}", 1 + int(rng.lognormvariate(5.0, 1.0)), end_s - rng.lognormvariate(2.0, 0.8)
    first_s = min(end_s, arrival_s + rng.lognormvariate(0.0, 0.5))
    cluster, features = number % 40, struct.pack("<32f", *(rng.random() for _ in range(32)))
    shared = {"prompt_tokens": 300, "max_tokens": 2048}
    records = (
        Arrived(request_id=name, arrival_s=arrival_s, token_ids=b"", temperature=1.0, **shared),
        Finished(
            request_id=name, time_s=end_s, reason="stop", arrival_s=arrival_s, output_tokens=tokens,
            cached_prompt_tokens=0, preemptions=0, recomputed_tokens=0, scheduled_s=arrival_s, first_token_s=first_s,
            **shared,
        ),
        Prediction(
            request_id=name, time_s=arrival_s, cluster=cluster, features=features, prompt_hash=name, mean_tokens=200.0,
            p10_tokens=40, p25_tokens=80, p50_tokens=150, p75_tokens=290, p90_tokens=530, p95_tokens=770, p99_tokens=1500,
            evidence=400.0, experts={"cluster": 0.6, "global": 0.4}, predict_s=0.0005,
        ),
        Outcome(
            request_id=name, time_s=end_s, output_tokens=tokens, censored=False, cluster=cluster, pit=rng.random(),
            crps_tokens=60.0, log_score=-5.0, within_50=rng.random() < 0.5, within_90=rng.random() < 0.9,
        ),
    )  # fmt: skip
    for place, record in enumerate(records):
        yield Entry(engine_id="engine-0", session_id="s", batch=number + 1 if place < 2 else None, record=record)


def measure(store: Path) -> None:
    """Serve the dashboard without a controller and open each page; prints seconds, cold and warm."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = launch.command("http://127.0.0.1:9", store, port)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:  # noqa: S603 - our own
        try:
            _wait(port)
            _open_all(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()


def _wait(port: int) -> None:
    for _ in range(300):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
            connection.request("GET", "/_stcore/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the dashboard did not start")


def _open_all(address: str) -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=shutil.which("chromium"), args=FLAGS, viewport={"width": 1440, "height": 1000}
        )
        page = browser.pages[0]
        page.goto(f"{address}/sql")  # The browser learns the scripts of the application, as on every later day.
        page.wait_for_timeout(6000)
        for name, (kind, number) in PAGES.items():
            extra = "&request=r777" if name == "request" else ""
            painted = [_painted_s(page, f"{address}/{name}?range=all{extra}", kind, number) for _ in range(TIMES)]
            sys.stdout.write(f"{name:10} " + " ".join(f"{seconds:6.2f}" for seconds in painted) + "\n")
        browser.close()


def _painted_s(page: Page, address: str, kind: str, number: int) -> float:
    started_s = time.perf_counter()
    page.goto(address)
    if number:
        page.get_by_test_id(kind).nth(number - 1).wait_for(timeout=60_000)
    else:
        page.get_by_role("heading", name="Settings and health").wait_for(timeout=60_000)
    page.wait_for_function("document.querySelectorAll('[data-testid=stSkeleton]').length === 0")
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
