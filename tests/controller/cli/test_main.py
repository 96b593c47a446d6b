from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import pytest

from controller.cli.main import app, run
from controller.config import load_config
from controller.demo.demo import dashboard_command
from controller.monitoring.doctor import examine
from dashboard.__main__ import parsed
from store.entries import EngineSeen, Entry
from store.history.writer import HistoryWriter
from store.records import Finished, Hello

COMMANDS = (
    "serve",
    "demo",
    "bench",
    "sweep",
    "suite",
    "evaluate",
    "overhead",
    "live-comparison",
    "load-test",
    "replay",
    "plan",
    "forget",
    "merge",
    "routers",
    "sql",
    "explain",
    "status",
    "top",
    "doctor",
    "dashboard",
    "mode",
)


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A history with one request in it."""
    hello = Hello(
        engine_id="e",
        session_id="s",
        model="m",
        engine="simulated",
        engine_version="0",
        kv_blocks=1,
        block_size_tokens=16,
        max_num_seqs=1,
        token_budget=1,
        max_model_len_tokens=1,
        prefix_caching=False,
        started_s=1.0,
    )
    finished = Finished(
        request_id="r",
        time_s=3.0,
        reason="stop",
        arrival_s=1.0,
        prompt_tokens=5,
        output_tokens=7,
        max_tokens=9,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
        scheduled_s=1.5,
        first_token_s=2.0,
    )
    with HistoryWriter(tmp_path / "h") as writer:
        seen = EngineSeen(time_s=1.0, event="connected", hello=hello)
        writer.append([Entry(engine_id="e", session_id="s", batch=None, record=seen)])
        writer.append([Entry(engine_id="e", session_id="s", batch=1, record=finished)])
    return tmp_path / "h"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`COMMAND --help` says what it does and shows a whole command line."""
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: sagesched {command}" in " ".join(text.split())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is hidden, and nothing is listed that does not exist."""
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out
    assert {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    } == set(COMMANDS)
    assert all(command in listed for command in COMMANDS)
    assert [line for line in listed.splitlines() if line.endswith(":")] == [
        "Options:",
        "Run:",
        "Look:",
        "Experiment:",
        "Administer:",
    ]
    assert "..." not in listed.replace("[ARGS]...", ""), "every line says all of it"


@pytest.mark.parametrize("words", [[], ["keys"]])
def test_without_a_command_the_help_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started that nobody asked for."""
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: ")
    assert "..." not in shown.replace("[ARGS]...", "")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The installed distribution's."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"sagesched {metadata.version('sagesched-controller')}\n"


def test_a_usage_error_names_the_commands_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    """On one line."""
    assert run(["mode", "fast"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "'off', 'shadow', 'on'" in line
    assert line.endswith("(see: sagesched mode --help)")


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--workload", "nope"],
        ["sweep", "--workload", "nope.parquet"],
        ["evaluate", "--workload", "/etc/passwd"],
        ["evaluate", "--workload", "synthetic:upside-down"],
    ],
)
def test_an_unknown_workload_is_refused_before_any_work(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No progress bar first."""
    assert run(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "workload" in line


def test_an_empty_entry_in_a_list_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A comma too many may stand for a load that was forgotten."""
    assert run(["sweep", "--loads", "1,,2", "--requests", "10"]) == 2
    assert "empty entry" in capsys.readouterr().err


def test_a_wide_answer_is_printed_row_by_row_on_a_terminal(
    history: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value can be read, whatever the width; in a pipe the grid stays."""
    words = ["sql", "SELECT * FROM requests", "--store", str(history)]
    monkeypatch.setenv("COLUMNS", "80")
    assert run(words) == 0
    grid = capsys.readouterr().out
    assert "request_id" in grid
    assert "row 1" not in grid
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "-- row 1 --"
    assert ["ttlt_s", "2.0"] in [line.split() for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--mode", "fast"], ("fast", "shadow")),
        (["nonsense"], ("nonsense",)),
        (["serve", "--colour"], ("--colour",)),
        (["serve", "--config", "/nowhere/x.toml"], ("/nowhere/x.toml", "--config")),
        (["serve", "--host", "0.0.0.0", "--port", "0"], ("0.0.0.0", "token")),
        (["serve", "--policy", "lifo", "--port", "0"], ("lifo", "sagesched-paper")),
        (["bench", "--workload", "/nowhere.parquet", "--quiet"], ("/nowhere.parquet",)),
        (["bench", "--policies", "fcfs,best"], ("best", "sage")),
        (["bench", "--profile", "abacus"], ("abacus", "h800")),
        (["bench", "--json", "/nowhere/x/y.json"], ("/nowhere/x/y.json",)),
        (["evaluate", "--requests", "10", "--warmup", "10"], ("warmup", "10")),
        (["sql", "SELECT 1", "--store", "/nowhere"], ("/nowhere", "--store")),
        (["sql"], ("query",)),
        (["explain"], ("REQUEST_ID",)),
        (["explain", "r", "--store", "/nowhere"], ("/nowhere", "--store")),
        (["mode", "sideways"], ("sideways",)),
        (["mode", "off", "--api", "nowhere"], ("nowhere", "http://")),
        (["demo", "--duration", "0"], ("duration",)),
    ],
)
def test_bad_usage_is_one_clear_line_and_code_2(
    arguments: list[str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names what is wrong; nothing is printed as if it had worked, and nothing is left behind."""
    store = ["--store", str(tmp_path / "h")] if arguments[0] == "serve" else []
    assert run([*arguments, *store]) == 2
    out, complaint = capsys.readouterr()
    assert len(complaint.strip().splitlines()) == 1, complaint
    assert out == ""
    for word in words:
        assert word in complaint
    assert not (tmp_path / "h").exists()


def test_no_controller_is_code_1_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """An order to a controller that does not run says so."""
    assert run(["mode", "off", "--api", "http://127.0.0.1:9"]) == 1
    assert "no controller answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.slow
def test_sql_answers_in_every_format(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, CSV and JSON on the screen, Parquet in a file: the same answer."""
    query = "SELECT request_id, output_tokens FROM requests"
    assert run(["sql", query, "--store", str(history)]) == 0
    assert "request_id" in capsys.readouterr().out
    assert run(["sql", query, "--store", str(history), "-f", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == ['"request_id","output_tokens"', '"r",7']
    assert run(["sql", query, "--store", str(history), "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"request_id": "r", "output_tokens": 7}]
    file = tmp_path / "answer.parquet"
    assert run(["sql", query, "--store", str(history), "-f", "parquet", "-o", str(file)]) == 0
    assert file.read_bytes()[:4] == b"PAR1"


@pytest.mark.slow
def test_explain_tells_of_a_recorded_request_in_sentences_and_as_json(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the history alone; an unknown request is one line with a remedy and code 2."""
    assert run(["explain", "r", "--store", str(history)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Request r (ended)\n- It arrived at ")
    assert "with 7 output tokens" in told
    assert run(["explain", "r", "--store", str(history), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["facts"]["model"], answer["facts"]["output_tokens"]) == ("m", 7)
    assert {sentence["about"] for sentence in answer["explanation"]["sentences"]} >= {"arrival", "wait", "end"}
    assert run(["explain", "nobody", "--store", str(history)]) == 2
    out, complaint = capsys.readouterr()
    assert out == ""
    assert "no request 'nobody'" in complaint
    assert len(complaint.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("query", ["DROP TABLE completions", "SELEC 1", "SELECT * FROM nothing", "SELECT 1; SELECT 2"])
def test_sql_refuses_what_is_no_question(history: Path, query: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes, nonsense and several statements end in one line and code 2."""
    assert run(["sql", query, "--store", str(history)]) == 2
    assert capsys.readouterr().err.startswith("sagesched: ")


@pytest.mark.slow
def test_evaluate_and_bench_write_the_documented_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The keys of both JSON files are those of the documentation."""
    file = tmp_path / "e.json"
    assert run(["evaluate", "--requests", "60", "--warmup", "20", "--quiet", "--json", str(file)]) == 0
    quality = json.loads(file.read_text())
    assert set(quality) == {
        *("workload", "requests", "kendall_tau", "spearman", "crps_tokens", "log_score", "coverage_50"),
        *("coverage_90", "predict_us_p50", "predict_us_p99", "learn_us_p50", "learn_us_p99", "experts"),
    }
    assert quality["requests"] == 40
    file = tmp_path / "b.json"
    command = ["bench", "--requests", "30", "--warmup", "20", "--policies", "fcfs,sage", "--quiet"]
    assert run([*command, "--json", str(file), "--html", str(tmp_path / "b.html")]) == 0
    result = json.loads(file.read_text())
    assert {
        "workload",
        "profile",
        "load",
        "seed",
        "requests",
        "objective",
        "capacity_rps",
        "versions",
        "policies",
    } <= set(result)
    assert set(result["policies"]) == {"fcfs", "sage"}
    assert {"mean_ttlt_s", "p99_ttlt_s", "preemptions", "recompute_tax"} <= set(result["policies"]["sage"])
    assert "fcfs" in capsys.readouterr().out
    assert (tmp_path / "b.html").stat().st_size > 10_000


@pytest.mark.slow
def test_doctor_prints_the_configuration_and_finds_a_healthy_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every check says what it found, the settings that were changed are shown, and a good place passes."""
    monkeypatch.setenv("SAGESCHED_ENGINE__ENDPOINT", f"ipc://{tmp_path}/run/engine.sock")
    monkeypatch.setenv("SAGESCHED_HTTP__TOKEN", "s3cret-and-long-enough")
    assert run(["doctor", "--store", str(tmp_path / "h"), "--port", "0"]) == 0
    text = capsys.readouterr().out
    assert f"store.path = {tmp_path / 'h'}" in text
    assert "s3cret" not in text
    assert "store.seal_interval_s" not in text
    for name in ("installation", "controller packages", "clock", "history", "disk", "endpoint", "port", "vLLM"):
        assert f"] {name}: " in text
    assert find_spec("vllm") is None or "all names and 15 behaviours hold" in text
    assert text.endswith("all is well\n")


def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    """A folder that cannot be made and an endpoint where others may write are named with a remedy."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    file = tmp_path / "file"
    file.write_text("")
    flags = {"store": {"path": file / "h"}, "engine": {"endpoint": f"ipc://{shared}/e.sock"}, "http": {"port": 0}}
    config = load_config(flags, environment={})
    wrong = {finding.name: finding for finding in examine(config, now_s=2e9) if finding.state == "wrong"}
    assert set(wrong) == {"history", "endpoint"}
    assert "chmod 700" in wrong["endpoint"].text
    assert "--store" in wrong["history"].remedy
    assert {
        f.name for f in takewhile(lambda f: f.name != "history", examine(config, now_s=1.0)) if f.state == "wrong"
    } == {"clock"}


def test_the_dashboard_is_started_as_it_wants_to_be() -> None:
    """The controller, which may not import the dashboard, gives it arguments that it knows."""
    for store in (Path("/h"), None):
        names = ["dash.example"]
        python, *module = dashboard_command("http://127.0.0.1:1", store, port=7, host="127.0.0.2", names=names)
        assert (python, module[:3]) == (sys.executable, ["-P", "-m", "dashboard"])
        given = parsed(module[3:])
        assert (given.port, given.host, given.name) == (7, "127.0.0.2", ["dash.example"])
        assert (given.api, given.store) == ("http://127.0.0.1:1", str(store) if store else None)


@pytest.mark.parametrize(("words", "named"), [([], False), (["--store", "/"], True)])
def test_the_dashboard_takes_the_history_that_the_controller_names(
    words: list[str], *, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A default folder that nobody asked for must not hide the one in use."""
    started: list[list[str]] = []
    monkeypatch.delenv("SAGESCHED_STORE__PATH", raising=False)
    monkeypatch.setattr(
        "controller.cli.main.subprocess.run",
        lambda command, **_: started.append(command) or subprocess.CompletedProcess(command, 0),
    )
    assert run(["dashboard", *words]) == 0
    assert ["--store" in command for command in started] == [named]


@pytest.mark.parametrize(
    ("words", "named"), [(["--port", "99999"], "--port"), (["--store", "/nowhere/at/all"], "/nowhere")]
)
def test_a_dashboard_that_cannot_show_anything_is_not_started(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A port that is none, and a history that is not there."""
    assert run(["dashboard", *words]) == 2
    assert named in capsys.readouterr().err


def test_module_and_script_are_the_same_program() -> None:
    """`python -m controller` is the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "controller", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "demo" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_whose_output_was_closed_does_its_work(closed: str) -> None:
    """As cron and some supervisors start programs."""
    line = f'"{sys.executable}" -m controller --version {closed}'
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_names_that_the_terminal_cannot_show_are_escaped(history: Path) -> None:
    """A client's emoji on a terminal of another encoding ends no command."""
    statement = "SELECT 'caf\u00e9 \U0001f9e8' AS tenant"
    for form in ("table", "csv", "json"):
        done = subprocess.run(
            [sys.executable, "-m", "controller", "sql", "--store", str(history), "--format", form, statement],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert done.returncode == 0, done.stderr
        assert b"caf\\" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_controller_is_ended_in_order_also_by_the_end_of_its_terminal(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Its last words are that it stops, and the history is closed: no log of DuckDB's is left beside it."""
    command = [sys.executable, "-m", "controller", "serve", "--port", "0", "--store", str(tmp_path / "h")]
    command += ["--endpoint", f"ipc://{tmp_path}/run/engine.sock"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=dict(os.environ)) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "history in" in line:
                process.send_signal(number)
        assert process.wait(60.0) == code
    assert any("stopping" in line for line in lines)
    assert not list((tmp_path / "h").glob("*.wal"))
