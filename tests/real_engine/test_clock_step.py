"""A real vLLM server on a machine whose system clock is set while it serves: back, and forth again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.virtual_time.profiles import PROFILES

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(900)]

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

Ask: TypeAlias = Callable[..., dict[str, Any]]

SYSTEM_CLOCK = '''
"""The system clock of this process and its children: it is off by what a file says."""
import os, pathlib, time

_real, _file = time.time, pathlib.Path(os.environ["SYSTEM_CLOCK_OFF"])
time.time = lambda: _real() + float(_file.read_text())
'''


@pytest.fixture(scope="module")
def lease_s() -> float:
    """More than the default, so that a busy machine is not taken for a dead controller."""
    return 5.0


@pytest.fixture(scope="module")
def clock_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that says by how many seconds vLLM's system clock is off."""
    return tmp_path_factory.mktemp("clock") / "off"


@pytest.fixture(scope="module")
def server(site: Site, clock_off: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server that takes orders, all of whose processes read that clock."""
    clock_off.write_text("0")
    (clock_off.parent / "sitecustomize.py").write_text(SYSTEM_CLOCK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(clock_off.parent), prepend=":")
        patch.setenv("SYSTEM_CLOCK_OFF", str(clock_off))
        server = VllmServer(
            endpoint=site.endpoint,
            profile=PROFILES["h800-qwen3-32b-24k"],
            speed=20.0,
            arguments=("--max-num-seqs", "4"),
            log_path=tmp_path_factory.mktemp("server") / "vllm.log",
            ready_s=300.0,
        )
        with server:
            site.wait_for(lambda: site.shows(mode="on"), "the engine to take orders")
            yield server


@pytest.mark.parametrize("off_s", [0.0, -600.0, 600.0])
def test_a_step_of_the_system_clock_is_told_and_changes_nothing(
    site: Site, server: VllmServer, ask: Ask, clock_off: Path, off_s: float
) -> None:
    """Order is in force, every recorded time is right, and everybody who looks is told of it."""
    clock_off.write_text(str(off_s))
    before = len(site.query("SELECT 1 FROM completions"))
    applied = site.snapshot()["tables_applied"]
    with ThreadPoolExecutor(12) as clients:
        bodies = [{"prompt": " ten" * 5, "max_tokens": 400, "vllm_xargs": {"true_len": str(20 + n)}} for n in range(36)]
        answers = list(clients.map(lambda body: ask(server, **body), bodies))
    assert sorted(answer["usage"]["completion_tokens"] for answer in answers) == list(range(20, 56))
    site.wait_for(lambda: len(site.query("SELECT 1 FROM completions")) == before + 36, "the ends in the history")
    rows = site.query(f"SELECT * FROM requests ORDER BY finished_s LIMIT 36 OFFSET {before}")
    for row in rows:
        assert row["arrival_s"] <= row["scheduled_s"] <= row["first_token_s"] <= row["finished_s"]
        assert row["finished_s"] - row["arrival_s"] < 60.0
    site.wait_for(lambda: site.shows(mode="on", fallback=None, policy_errors=0), "the order in force")
    assert site.snapshot()["tables_applied"] > applied
    told = ["clock_off"] if off_s else []
    site.wait_for(lambda: site.api.get("/readyz")["degraded"] == told, f"the state {told}")
    assert abs(site.snapshot()["clock_off_s"] - off_s) < 1.0
