"""What requests ask of a real engine: structured outputs, log probabilities, stop strings, several choices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine_adapter.serving.vllm_server import server_environment

SCRIPT = Path(__file__).with_name("request_features.py")

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1800)]


def _serve(kind: str, path: Path) -> Any:
    environment = server_environment({**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    command = [sys.executable, str(SCRIPT), kind, str(path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(path.read_text())


def test_every_kind_of_answer_is_that_of_stock_vllm(tmp_path: Path) -> None:
    """Text, tokens, reasons and log probabilities, in every mode; only in mode on does the order differ."""
    stock = _serve("stock", tmp_path / "stock.json")["found"]["off"]
    ours = _serve("sage", tmp_path / "sage.json")
    assert (ours["modes"], ours["errors"]) == (["off", "on", "shadow"], 0)
    for mode, found in ours["found"].items():
        assert found["answers"] == stock["answers"], mode
    answers = {name: answer["texts"] for name, answer in stock["answers"].items()}
    assert answers["choice"][0][0] in {"yes", "no"}
    assert answers["regular expression"][0][0].isdigit()
    assert len(answers["three choices"]) == 3
    assert answers["stop string"][0][2] == "stop"
    assert all(stock["answers"]["prompt logprobs"]["prompt"][1:])
    orders = {mode: found["order"] for mode, found in ours["found"].items()}
    assert [mode for mode, order in orders.items() if order == sorted(order)] == ["off", "shadow"]
