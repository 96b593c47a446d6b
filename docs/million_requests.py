"""How long every page of the dashboard takes to paint over a long history: ``python docs/million_requests.py``.

Writes a history of a million requests (or of as many as are asked for) into a folder, runs a controller and a lightly
loaded simulated engine on it, serves the dashboard, and opens each page in Chromium with the range *all*: the first
time with all caches of the dashboard empty, then twice more.
A page is painted when the last of its charts, tables and figures is there and nothing is still being read.
Then it switches the mode to and fro, and says how long it took from the order until the open page showed the engine in
it: through the controller, the engine's next snapshot, the controller's live snapshot and the browser.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from controller.demo.demo import dashboard_command
from engine_adapter.serving.processes import Children, free_port
from store.entries import DriftDetected, EngineSeen, Entry, Outcome, Prediction, Promised, SettingsChanged, StoreRecord
from store.history.writer import HistoryWriter
from store.records import Arrived, EngineRules, Finished, Gate, Hello, Settings, Targets

DAY_S = 86_400.0
CHUNK = 2000
TIMES = 3
SWITCHES = 10
TENANTS, CLUSTERS = 12, 40
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CHART = ".js-plotly-plot:visible"
TABLE = "[data-testid=stDataFrame] canvas"
FIGURE = "[data-testid=stMetricValue]"
PAGES = {
    "": ((CHART, 3), (TABLE, 1), (FIGURE, 6)),
    "latency": ((CHART, 7), (TABLE, 1)),
    "service": ((CHART, 4), (TABLE, 2), (FIGURE, 4)),
    "gain": ((FIGURE + ", [data-testid=stAlert]", 1),),
    "predictions": ((CHART, 5), (FIGURE, 6)),
    "prompts": ((CHART, 4), (TABLE, 2)),
    "request": ((CHART, 4), (FIGURE, 6)),
    "history": ((CHART, 4), (TABLE, 1), (FIGURE, 5)),
    "sql": ((TABLE, 1),),
    "settings": ((TABLE, 2), (FIGURE, 5)),
}
"""Every page, and how much of what is there when it is painted."""


def main() -> None:
    """Write the history unless it is there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "sagesched-million")
    given = parser.parse_args()
    if not given.store.exists():
        write(given.store, given.requests, time.time())
    measure(given.store)


def write(store: Path, requests: int, end_s: float) -> None:
    """Write requests that ended over the 30 days before ``end_s``; ``requests`` is their number."""
    rng = random.Random(1)
    started_s = time.perf_counter()
    with HistoryWriter(store, seal_interval_s=60.0, retention_days=36_500.0) as writer:
        writer.append(_events(end_s))
        for first in range(0, requests, CHUNK):
            entries = [
                entry
                for number in range(first, min(first + CHUNK, requests))
                for entry in _life(number, end_s - 30 * DAY_S * (1 - number / requests), rng)
            ]
            while writer.stats.queued > 50_000:
                time.sleep(0.05)
            writer.append(entries)
            if first % 100_000 == 0:
                _say(f"{first:,} requests, {time.perf_counter() - started_s:.0f} s")


def _events(end_s: float) -> list[Entry]:
    """An engine, a drift a day and a change of the settings every hour."""
    hello = Hello(
        engine_id="engine-0",
        session_id="s",
        model="m",
        engine="simulated",
        engine_version="1",
        kv_blocks=1500,
        block_size_tokens=16,
        max_num_seqs=64,
        token_budget=2048,
        max_model_len_tokens=4096,
        prefix_caching=False,
        started_s=0.0,
    )
    begin_s = end_s - 30 * DAY_S
    rules = EngineRules(gate=Gate(horizon_tokens=32, margin=1.1), boost_per_s=0.02)
    settings = Settings(revision=1, mode="on", lease_s=2.0, rules=rules)
    records: list[StoreRecord] = [
        EngineSeen(time_s=begin_s, event="connected", hello=hello),
        *(
            DriftDetected(
                time_s=begin_s + day * DAY_S,
                model="m",
                cluster=day,
                before_mean_tokens=200.0,
                after_mean_tokens=300.0,
                forgotten=100.0,
                renewed_requests=10,
            )
            for day in range(30)
        ),
        *(
            SettingsChanged(time_s=begin_s + hour * 3600.0, settings=settings, reason="preemptions were rare")
            for hour in range(720)
        ),
    ]
    return [Entry(engine_id="engine-0", session_id="s", batch=None, record=record) for record in records]


def _life(number: int, end_s: float, rng: random.Random) -> Iterator[Entry]:
    name, tokens, arrival_s = f"r{number}", 1 + int(rng.lognormvariate(5.0, 1.0)), end_s - rng.lognormvariate(2.0, 0.8)
    first_s = min(end_s, arrival_s + rng.lognormvariate(0.0, 0.5))
    cluster, features = number % CLUSTERS, struct.pack("<32f", *(rng.random() for _ in range(32)))
    prompt_tokens = 1 + int(rng.lognormvariate(5.0, 1.0))
    records: tuple[StoreRecord, ...] = (
        Arrived(
            request_id=name,
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            token_ids=b"",
            max_tokens=2048,
            temperature=1.0,
            priority=number % 3 // 2,
            tenant=f"tenant-{number % TENANTS}",
            session=f"session-{number // 8}" if number % 2 else None,
        ),
        Promised(
            request_id=name,
            time_s=arrival_s,
            service_class=("chat", "batch")[number % 2],
            targets=(Targets(ttft_s=1.0, tpot_s=0.2), Targets(e2e_s=60.0))[number % 2],
            account=f"tenant-{number % TENANTS}",
            weight=1.0 + number % TENANTS % 3,
            objective=(0.95, 0.9)[number % 2],
        ),
        Finished(
            request_id=name,
            time_s=end_s,
            reason="stop" if number % 50 else "abort",
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            output_tokens=tokens,
            max_tokens=2048,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
            scheduled_s=(arrival_s + first_s) / 2,
            first_token_s=first_s,
        ),
        Prediction(
            request_id=name,
            time_s=arrival_s,
            cluster=cluster,
            features=features,
            prompt_hash=name,
            mean_tokens=200.0,
            p10_tokens=40,
            p25_tokens=80,
            p50_tokens=150,
            p75_tokens=290,
            p90_tokens=530,
            p95_tokens=770,
            p99_tokens=1500,
            evidence=400.0,
            experts={"cluster": 0.6, "global": 0.4},
            predict_s=0.0005,
        ),
        Outcome(
            request_id=name,
            time_s=end_s,
            output_tokens=tokens,
            censored=number % 50 == 0,
            cluster=cluster,
            pit=rng.random(),
            crps_tokens=60.0,
            log_score=-5.0,
            within_50=rng.random() < 0.5,
            within_90=rng.random() < 0.9,
            answer=number,
            service_s=0.002 * tokens,
        ),
    )
    for record in records:
        batch = number + 1 if isinstance(record, Arrived | Finished) else None
        yield Entry(engine_id="engine-0", session_id="s", batch=batch, record=record)


def measure(store: Path) -> None:
    """Run controller, engine and dashboard, and open each page; prints seconds, the first time first."""
    api, port = free_port(0), free_port(0)
    api_url = f"http://127.0.0.1:{api}"
    with tempfile.TemporaryDirectory() as folder, Children(Path(folder)) as children:
        endpoint = f"ipc://{folder}/run/engine.sock"
        serve = [sys.executable, "-m", "controller", "serve", "--mode", "on", "--store", str(store)]
        environment = {"SAGESCHED_STORE__RETENTION_DAYS": "36500", "OMP_NUM_THREADS": "1"}
        children.start("controller", [*serve, "--endpoint", endpoint, "--port", str(api)], environment=environment)
        _wait(api, "/readyz")
        engine = [sys.executable, "-m", "engine_adapter.serving.simulated_server", "--endpoint", endpoint]
        children.start("engine", [*engine, "--profile", "h800-qwen3-32b-24k", "--rate", "1"])
        children.start("dashboard", dashboard_command(api_url, store, port=port))
        _wait(port, "/_stcore/health")
        _wait_for_requests(api)
        _open_all(f"http://127.0.0.1:{port}", api)


def _wait(port: int, path: str) -> None:
    for _ in range(3000):
        try:
            if _asked(port, path)[0] == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"nothing answers at port {port}, {path}")


def _wait_for_requests(port: int) -> None:
    """Until the engine has ended a few, so that the live pages have something to show."""
    for _ in range(600):
        if json.loads(_asked(port, "/api/state")[1])["learner"]["completions"] >= 10:
            return
        time.sleep(0.2)
    raise SystemExit("the engine serves no requests")


def _asked(port: int, path: str, body: object = None) -> tuple[int, bytes]:
    """Get a path, or post JSON to it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _open_all(address: str, api: int) -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=shutil.which("chromium"), args=FLAGS, viewport={"width": 1440, "height": 1000}
        )
        page = browser.pages[0]
        # The very first opening: a fresh browser learns the application, a fresh server imports it.
        _say(f"{'newcomer':12} {_painted_s(page, address + '/sql', PAGES['sql']):6.2f}")
        for name, parts in PAGES.items():
            extra = "&request=r777" if name == "request" else ""
            painted = [_painted_s(page, f"{address}/{name}?range=all{extra}", parts) for _ in range(TIMES)]
            shown = " ".join(f"{seconds:6.2f}" for seconds in painted)
            _say(f"{name or 'now':12} {shown}   (load of the machine {os.getloadavg()[0]:.1f})")
        page.goto(f"{address}/")
        took_s = sorted(_update_s(page, api, mode) for mode in ("shadow", "on") * SWITCHES)
        _say(f"{'an update':12} median {statistics.median(took_s):.2f} s, longest {took_s[-1]:.2f} s of {len(took_s)}")
        browser.close()


def _update_s(page: Page, api: int, mode: str) -> float:
    """Seconds from the order of a mode until the page *Now* shows that the engine is in it."""
    started_s = time.perf_counter()
    status, _ = _asked(api, "/api/mode", {"mode": mode})
    assert status == http.HTTPStatus.OK, f"the mode was not switched: {status}"
    page.wait_for_function(
        f"document.querySelector({json.dumps(FIGURE)})?.innerText === {json.dumps(mode)}", timeout=30_000
    )
    return time.perf_counter() - started_s


def _painted_s(page: Page, address: str, parts: tuple[tuple[str, int], ...]) -> float:
    started_s = time.perf_counter()
    page.goto(address)
    for kind, number in parts:
        page.locator(kind).nth(number - 1).wait_for(timeout=120_000, state="attached")
    page.wait_for_function("document.querySelectorAll('[data-testid=stSkeleton]').length === 0")
    return time.perf_counter() - started_s


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
