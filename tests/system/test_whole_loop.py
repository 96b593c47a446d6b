from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from controller.demo.story import SWITCH_REASON
from store.history.reader import open_history

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

LOAD = ("--profile", "h800-qwen3-32b-24k", "--speed", "4", "--rate", "6", "--seed", "3")

READER = """
import os, sys, time, duckdb
catalog, rounds = sys.argv[1], int(sys.argv[2])
previous = 0
for _ in range(rounds):
    with duckdb.connect(catalog, read_only=True) as connection:
        connection.execute(f"SET file_search_path = '{os.path.dirname(catalog)}'")
        count = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
    assert count >= previous, (count, previous)
    previous = count
    time.sleep(0.03)
print(previous)
"""


def test_every_life_is_in_the_history(
    site: Site, summary_of: Callable[[Any], dict[str, Any]], eventually: Callable[..., None]
) -> None:
    """Engine and controller as processes: each request that was served is recorded once, from arrival to outcome."""
    controller = site.start_controller()
    engine = site.start_engine(*LOAD, "--duration", "5")
    eventually(lambda: site.engine_mode() == "on")
    assert engine.process.wait(60) == 0
    summary = summary_of(engine)
    assert summary["requests_finished"] > 20
    assert summary["facts_unacknowledged"] == 0
    assert site.stop(controller) == 0
    with open_history(site.store) as history:
        lives = history.execute(
            "SELECT count(*), count(DISTINCT request_id), count(first_token_s), count(p50_tokens),"
            " count(*) FILTER (arrival_s <= scheduled_s AND scheduled_s <= first_token_s AND first_token_s <= finished_s)"
            " FROM requests WHERE finished_s IS NOT NULL AND reason = 'stop'"
        ).fetchall()[0]
        undecided = history.execute(
            "SELECT count(*) FROM completions ANTI JOIN decisions USING (session_id, request_id)"
        ).fetchall()[0][0]
        events = [event for (event,) in history.execute("SELECT event FROM engines ORDER BY received_s").fetchall()]
    assert set(lives) == {lives[0]}, "each life is there once, complete, predicted and in order"
    assert lives[0] <= summary["requests_finished"]
    assert undecided == 0
    assert events == ["connected", "left"]


def test_a_killed_controller_costs_no_request_and_no_acknowledged_fact(
    site: Site, summary_of: Callable[[Any], dict[str, Any]], eventually: Callable[..., None]
) -> None:
    """SIGKILL under load: FCFS meanwhile, order after the return, all facts in the history, readers never locked out."""
    first = site.start_controller()
    engine = site.start_engine(*LOAD)
    eventually(lambda: site.engine_mode() == "on")
    eventually(lambda: site.ask("/api/state")["store"]["rows"].get("completions", 0) >= 5)
    reader = site.start("reader", [sys.executable, "-c", READER, str(site.store / "catalog.duckdb"), "100"])
    site.kill(first)
    time.sleep(3.0)
    assert engine.running, "the engine goes on without a controller"

    second = site.start_controller()
    eventually(lambda: site.engine_mode() == "on")
    assert reader.process.wait(60) == 0, reader.last_lines()
    assert site.stop(engine) == 0
    summary = summary_of(engine)
    assert summary["facts_unacknowledged"] == 0
    assert site.stop(second) == 0
    with open_history(site.store) as history:
        arrived, finished, once = history.execute(
            "SELECT count(*), count(finished_s), count(DISTINCT request_id) FROM requests"
        ).fetchall()[0]
        served_alone = history.execute(
            "SELECT count(*) FROM completions, (SELECT max(time_s) AS gone_s FROM snapshots"
            " WHERE received_s < (SELECT max(received_s) FROM settings_history)) AS away"
            " WHERE time_s BETWEEN gone_s + 0.1 AND gone_s + 2.5"
        ).fetchall()[0][0]
    assert arrived == once == summary["requests_submitted"]
    assert finished == summary["requests_finished"]
    assert served_alone > 0, "requests ended while there was no controller, and their facts came later"


def test_a_stopping_controller_finishes_its_history(site: Site, eventually: Callable[..., None]) -> None:
    """Ctrl-C ends a controller under load within seconds, with code 130 and everything it took sealed."""
    controller = site.start_controller()
    site.start_engine(*LOAD)
    eventually(lambda: site.engine_mode() == "on")
    os.kill(controller.process.pid, signal.SIGINT)
    assert controller.process.wait(20) == 130
    with open_history(site.store) as history:
        assert history.execute("SELECT count(*) FROM arrivals").fetchall()[0][0] > 0


def test_one_screen_of_text_shows_a_running_site(site: Site, eventually: Callable[..., None]) -> None:
    """`status` needs no browser, `mode` says whom it reached, `sql` finds the history, the log has every event."""
    controller = site.start_controller()
    quiet = run_command("status", "--api", site.api.base_url)
    assert quiet.returncode == 1
    assert "AMBER: No engine is connected" in quiet.stdout
    assert "vllm serve MODEL" in quiet.stdout
    engine = site.start_engine(*LOAD)
    eventually(lambda: site.ask("/api/state")["store"]["rows"].get("completions", 0) >= 5)
    shown = run_command("status", "--api", site.api.base_url)
    level = site.ask("/api/now")["verdict"]["level"]
    assert shown.returncode == (0 if "GREEN: All is well" in shown.stdout else 1), (level, shown)
    assert "mode on" in shown.stdout
    assert re.search(r"requests: TTFT P50 .* E2E P50", shown.stdout)
    assert re.search(r"^ *simulated .* on +\d+ +\d+ ", shown.stdout, re.MULTILINE)
    switched = run_command("mode", "shadow", "--api", site.api.base_url, "--reason", "a test")
    assert "sent to 1 engine" in switched.stdout
    eventually(lambda: site.engine_mode() == "shadow")
    eventually(lambda: b"1" in asked(site.port, "SELECT count(*) FROM mode_switches"))
    assert site.stop(engine) == 0
    assert site.stop(controller) == 0
    log = controller.last_lines(40)
    assert "nanobind" not in log
    for event in ("engine simulated connected", "mode of all engines: shadow (a test)", "engine simulated left"):
        assert event in log, log


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controller", *words], capture_output=True, text=True, timeout=60, check=False
    )


def asked(port: int, statement: str) -> bytes:
    """The answer of `sql` that is told the controller's port alone."""
    environment = {**os.environ, "SAGESCHED_HTTP__PORT": str(port)}
    environment.pop("SAGESCHED_STORE__PATH", None)
    command = [sys.executable, "-m", "controller", "sql", statement, "--format", "csv"]
    return subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False).stdout


def test_the_demo_ends_with_its_summary(tmp_path: Path) -> None:
    """`demo --duration 15 --no-dashboard --json` serves, learns, orders, records, and says so on its last line."""
    command = [sys.executable, "-m", "controller", "demo", "--duration", "15", "--no-dashboard", "--json"]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "h")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["engine"] == "simulated"
    assert summary["requests_finished"] > 20
    assert 0.0 < summary["mean_ttlt_s"] <= summary["p99_ttlt_s"]
    assert summary["tables_sent"] >= summary["tables_applied"] > 0
    assert summary["messages_dropped"] == 0
    assert summary["predictions"] >= summary["requests_finished"]
    assert summary["store_rows"] > summary["predictions"]
    assert summary["before_s"] > 0.0, "it opens first come, first served"
    assert summary["after_s"] > 0.0
    assert "mode       on: until here first come, first served" in done.stdout
    with open_history(tmp_path / "h") as history:
        switches = history.execute("SELECT before, mode, reason, who FROM mode_switches").fetchall()
    assert switches == [("shadow", "on", SWITCH_REASON, "demo")]


def test_a_demo_whose_controller_dies_says_who_died_and_where_to_look(tmp_path: Path) -> None:
    """The other end of a connection that broke would be the wrong place to look."""
    command = [sys.executable, "-m", "controller", "demo", "--no-dashboard", "--store", str(tmp_path / "h")]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "connected" in line:
            break
    [controller] = [pid for pid in _children_of(demo.pid) if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(controller), signal.SIGKILL)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "controller was killed by signal 9: see" in errors


def test_children_of_a_killed_demo_do_not_survive(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """Even SIGKILL of the demo leaves no process behind."""
    command = [sys.executable, "-m", "controller", "demo", "--no-dashboard", "--store", str(tmp_path / "h")]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "connected" in line:
            break
    children = _children_of(demo.pid)
    assert len(children) >= 2
    demo.kill()
    demo.wait()
    demo.stdout.close()
    eventually(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children))


def _children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
