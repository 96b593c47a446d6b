import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from store.history.reader import open_history

pytestmark = [pytest.mark.long, pytest.mark.vllm, pytest.mark.browser, pytest.mark.timeout(900)]


def test_a_browser_shows_real_vllm_at_work(tmp_path: Path, visitor: Any) -> None:
    """The real server and scheduler over a virtual GPU, load over HTTP: served, predicted, ordered, shown, recorded."""
    store = tmp_path / "history"
    command = [sys.executable, "-m", "controller", "demo", "--engine", "vllm", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        try:
            visitor.address = _dashboard_address(demo)
            visitor.sees_numbers_move()
            visitor.sees_every_page()
            visitor.opens_a_request_from_the_queue()
            visitor.asks_in_sql()
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(timeout=120)
    assert visitor.errors == []
    with open_history(store) as history:
        finished, predicted, engine = history.execute(
            "SELECT count(*), count(p50_tokens), (SELECT any_value(engine) FROM engines) FROM requests"
            " WHERE finished_s IS NOT NULL"
        ).fetchall()[0]
        applied, dropped = history.execute(
            "SELECT max(tables_applied), max(messages_dropped) FROM snapshots"
        ).fetchall()[0]
    assert engine == "vllm"
    assert predicted == finished > 5
    assert applied > 0
    assert dropped == 0


def _dashboard_address(demo: subprocess.Popen[str]) -> str:
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:
        lines.append(line)
        if "connected" in line:
            break
    [address] = re.findall(r"^dashboard\s+(\S+)", "".join(lines), re.MULTILINE)
    return str(address)
