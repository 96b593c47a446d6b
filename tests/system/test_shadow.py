"""Shadow mode from end to end, with processes: try it beside production, see what it would bring, switch it on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from store.history.reader import open_history

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

LOAD = ("--profile", "h800-qwen3-32b-24k", "--speed", "8", "--load", "1.5", "--seed", "3")
ENDED = 1_500
"""Answers after which the queue is long enough for an order to matter."""


def test_what_shadow_promises_is_seen_before_one_call_switches_it_on(
    site: Site, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """In shadow nothing changes, `replay` says what `on` would bring, and `mode on` is all that it takes."""
    _serve_in_shadow(site, eventually)
    report = _replay(site, tmp_path)
    assert report["modes"].get("shadow", 0.0) > 0.9
    assert report["policies"]["sage"]["ratio"]["mean"] < 1.0
    assert _running_order_was_arrival_order(site)

    _command("mode", "on", "--reason", "shadow looked good", "--api", site.api.base_url)
    switched_s = time.time()
    eventually(lambda: site.engine_mode() == "on", timeout_s=5.0)
    eventually(lambda: time.time() > switched_s + 8.0)
    report = _replay(site, tmp_path)
    assert set(report["modes"]) >= {"shadow", "on"}
    with open_history(site.store) as history:
        changes = history.execute("SELECT mode, reason FROM settings_history ORDER BY revision").fetchall()
    assert changes[0] == ("shadow", "start")
    assert ("on", "shadow looked good") in changes


def test_the_gain_is_told_in_shadow(site: Site, eventually: Callable[..., None]) -> None:
    """`/api/gain` says without being told to what `on` would bring; it takes as long as its share of the machine allows."""
    _serve_in_shadow(site, eventually)
    eventually(lambda: _gain(site).get("ratio", {}).get("mean", 1.0) < 0.9, timeout_s=400.0)
    gain = _gain(site)
    assert gain["reproduction"]["mode"] == "shadow"
    assert gain["modelled"]["mean_ttlt_s"] < gain["fcfs"]["mean_ttlt_s"]


def _serve_in_shadow(site: Site, eventually: Callable[..., None]) -> None:
    site.start_controller("--mode", "shadow")
    site.start_engine(*LOAD)
    eventually(lambda: site.engine_mode() == "shadow")
    # Comparisons may take a share of the machine only: nobody asks for one before it has something to compare.
    eventually(lambda: _ended(site) > ENDED, timeout_s=300.0)


def _ended(site: Site) -> int:
    if not (site.store / "catalog.duckdb").exists():
        return 0
    with open_history(site.store) as history:
        return int(history.execute("SELECT count(*) FROM completions").fetchall()[0][0])


def _gain(site: Site) -> dict[str, Any]:
    answer = site.ask("/api/gain") or {}
    return answer.get("gain") or {}


def _replay(site: Site, folder: Path) -> dict[str, Any]:
    """What `replay` says beside the running controller."""
    file = folder / "replay.json"
    _command("replay", "--store", str(site.store), "--policies", "fcfs,sage", "--quiet", "--json", str(file))
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def _command(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "controller", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def _running_order_was_arrival_order(site: Site) -> bool:
    """Whether the engine has started requests in the order in which they came."""
    with open_history(site.store) as history:
        started = history.execute("SELECT arrival_s FROM completions ORDER BY scheduled_s, arrival_s").fetchall()
    arrivals_s = [arrival_s for (arrival_s,) in started]
    return arrivals_s == sorted(arrivals_s)
