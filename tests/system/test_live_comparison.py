from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest


@pytest.mark.vllm
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_live_server_serves_the_benchmarks_trace(tmp_path: Path) -> None:
    """Real server, scheduler, controller and vLLM's own client over a virtual GPU, stock and with us.

    Every answer ends at its true length, which the client checks; requests are ordered by tables of their own;
    each world's figures are over the same requests, and ours has every target, which came in headers.
    How near the ratios are is for a longer run to say.
    """
    command = [
        *(sys.executable, "-m", "controller", "live-comparison", "--requests", "40", "--warmup", "40", "--speed", "8"),
        *(
            "--load",
            "1.5",
            "--slo",
            "--folder",
            str(tmp_path / "live"),
            "--json",
            str(tmp_path / "live.json"),
            "--quiet",
        ),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "live.json").read_text())
    assert report["live"]["sage"]["tables_applied"] >= 32
    assert report["live"]["fcfs"]["tables_applied"] == 0
    for side in ("fcfs", "sage"):
        live, virtual = report["live"][side], report["virtual"][side]
        assert live["makespan_s"] > 0.95 * virtual["makespan_s"]
        assert live["device_busy_s"] > 0.5 * virtual["makespan_s"]
        assert live["asked"] > 20
        assert live["goodput"] == live["good"] / live["asked"]
        assert 0.0 <= report["virtual_goodput"][side] <= 1.0
    with duckdb.connect(tmp_path / "live" / "history" / "catalog.duckdb", read_only=True) as catalog:
        catalog.execute(f"SET file_search_path = '{tmp_path / 'live' / 'history'}'")
        asked = catalog.execute(
            "SELECT count(*) FROM arrivals WHERE coalesce(targets_ttft_s, targets_e2e_s) > 0"
        ).fetchone()
    assert asked == (report["live"]["sage"]["asked"],)
    for ratio in report["ratios"].values():
        assert ratio["deviation"] == pytest.approx(ratio["live"] / ratio["virtual"] - 1.0)
    assert "learned from 40 recorded answers" in _log(tmp_path)


def _log(folder: Path) -> str:
    return (folder / "live" / "controller.log").read_text()
