"""The benchmark over loads and profiles on the command line, its pictures, and how it ends when nobody wants it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from controller.cli.main import run

pytestmark = pytest.mark.slow

IMPORTED_AFTER_CPU_S = 4.0
"""A worker that has used so much is past its imports, and serves."""

SVG = "{http://www.w3.org/2000/svg}"
SWEEP = [
    "sweep",
    "--profiles",
    "h800-qwen3-32b-24k,a40-llama3.1-8b",
    "--loads",
    "0.7,1.3",
    "--seeds",
    "1,2",
    "--requests",
    "60",
    "--warmup",
    "40",
    "--policies",
    "fcfs,ssjf,sage",
    "--processes",
    "1",
    "--quiet",
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep's files: two profiles, two loads, two seeds, three policies."""
    folder = tmp_path_factory.mktemp("sweep")
    files = ["--json", f"{folder}/s.json", "--html", f"{folder}/s.html", "--svg", f"{folder}/s.svg"]
    assert run([*SWEEP, *files]) == 0
    return folder


def test_a_sweep_writes_a_benchmark_for_each_load_and_profile(swept: Path) -> None:
    """Each as `bench` writes it, with ratios and every seed; one capacity of a profile for all its loads."""
    results = json.loads((swept / "s.json").read_text())["sweep"]
    cells = [(result["profile"], result["load"]) for result in results]
    assert cells == [(p, load) for p in ("h800-qwen3-32b-24k", "a40-llama3.1-8b") for load in (0.7, 1.3)]
    for result in results:
        assert result["seeds"] == [1, 2]
        assert set(result["policies"]) == {"fcfs", "ssjf", "sage"}
        assert result["ratios"]["fcfs"]["p99_ttlt_s"]["mean"] == 1.0
        assert len(result["by_seed"]) == 2
    assert results[0]["capacity_rps"] == results[1]["capacity_rps"] != results[2]["capacity_rps"]


def test_the_picture_has_a_line_for_each_policy_in_each_panel(swept: Path) -> None:
    """Two profiles by two figures; a point for each load; the policy compared with is the line at 1."""
    live_snapshot = ET.parse(swept / "s.svg").getroot()  # noqa: S314 - our own file
    lines = live_snapshot.findall(f"{SVG}polyline")
    assert len(lines) == 2 * 2 * 2
    assert {len(line.attrib["points"].split()) for line in lines} == {2}
    words = {text.text for text in live_snapshot.findall(f"{SVG}text")}
    assert {"ssjf", "sage", "mean TTLT / fcfs, a40-llama3.1-8b", "P99 TTLT / fcfs, h800-qwen3-32b-24k"} <= words
    assert "fcfs" not in words


def test_the_page_has_the_gain_of_each_profile_and_all_tables(swept: Path) -> None:
    """Mean and P99 of two profiles, four plots of each profile's highest load, and a table for each cell."""
    page = (swept / "s.html").read_text(encoding="utf-8")
    assert page.count("plotly-graph-div") == 2 * 2 + 2 * 4
    assert page.count("<table>") == 4
    assert 'src="https' not in page
    assert "<h1>fcfs, ssjf, sage on synthetic</h1>" in page, "the title says what was compared"
    assert "sage against fcfs: mean E2E latency" in page, "the verdict comes first"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--loads", "0.8,lots"], "lots"),
        (["--loads", ""], "--loads"),
        (["--loads", "-1"], "load is -1"),
        (["--profiles", "abacus"], "abacus"),
        (["--against", "trail"], "trail"),
        (["--seeds", "one"], "one"),
        (["--svg", "/nowhere/x.svg"], "/nowhere/x.svg"),
        (["--arrivals", "weekly"], "weekly"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_by_name(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and code 2, before anything runs."""
    assert run([*SWEEP, *flags]) == 2
    assert named in capsys.readouterr().err


HEARS_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("controller", run_name="__main__", alter_sys=True)
"""
"""A shell starts what it runs in the background deaf to Ctrl-C, and so would be the benchmark under such tests."""


def test_ctrl_c_ends_the_benchmark_and_all_its_processes() -> None:
    """The parent alone is interrupted, in the middle of runs in two processes: code 130, no traceback, nobody left."""
    command = [sys.executable, "-c", HEARS_CTRL_C, "bench", "--requests", "100000", "--warmup", "0", "--processes", "2"]
    with subprocess.Popen([*command, "--quiet", "--seeds", "1,2"], stderr=subprocess.PIPE, text=True) as bench:
        while len(workers := [child for child in _children(bench.pid) if _cpu_s(child) > IMPORTED_AFTER_CPU_S]) < 2:
            assert bench.poll() is None, "the benchmark must run"
            time.sleep(0.1)
        os.kill(bench.pid, signal.SIGINT)
        _, errors = bench.communicate(timeout=60)
    assert bench.returncode == 130
    assert "Traceback" not in errors
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def _children(process_id: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


def _cpu_s(process_id: int) -> float:
    """Seconds of processor time that a process has used so far; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")
