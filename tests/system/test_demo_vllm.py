from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_demo_runs_on_real_vllm(tmp_path: Path) -> None:
    """The real server and scheduler over a virtual GPU, load over HTTP: served, predicted, ordered, recorded."""
    command = [sys.executable, "-m", "controller", "demo", "--engine", "vllm", "--duration", "10", "--no-dashboard"]
    done = subprocess.run(
        [*command, "--json", "--store", str(tmp_path / "h")], capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["engine"] == "vllm"
    assert summary["requests_finished"] > 5
    assert summary["predictions"] >= summary["requests_finished"]
    assert summary["tables_applied"] > 0
    assert summary["messages_dropped"] == 0
