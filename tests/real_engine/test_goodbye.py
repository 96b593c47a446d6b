"""A real vLLM server that falls idle while its controller hangs or is not there: nothing that was answered is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.virtual_time.profiles import PROFILES

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(900)]

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

Ask: TypeAlias = Callable[..., dict[str, Any]]

QUIET_S = 8.0
"""Time in which nobody asks the engine anything."""
HANGS_S = 4.0
"""Beyond the lease: the engine no longer counts as welcomed."""


@pytest.fixture(scope="module")
def lease_s() -> float:
    """The default."""
    return 2.0


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server that starts while there is no controller, and is asked nothing."""
    site.kill_controller()
    with VllmServer(
        endpoint=site.endpoint,
        profile=PROFILES["h800-qwen3-32b-24k"],
        speed=20.0,
        log_path=tmp_path_factory.mktemp("server") / "vllm.log",
        ready_s=300.0,
    ) as server:
        yield server


def answers(server: VllmServer, ask: Ask, count: int) -> list[str]:
    """The ids of so many answers, each of 20 tokens."""
    bodies = [ask(server, prompt=" ten" * 5, max_tokens=400, vllm_xargs={"true_len": "20"}) for _ in range(count)]
    assert {body["usage"]["completion_tokens"] for body in bodies} == {20}
    return [body["id"] for body in bodies]


def recorded(site: Site, names: list[str]) -> list[int]:
    """How often the end of each of these answers is in the history."""
    found = [row["request_id"] for row in site.query("SELECT request_id FROM completions")]
    return [sum(name in request_id for request_id in found) for name in names]


def test_an_idle_engine_connects_and_takes_the_mode(site: Site, server: VllmServer) -> None:
    """The controller comes later and nobody asks the engine anything: it is there, with its name, and on."""
    assert server.alive
    site.start_controller()
    site.wait_for(lambda: site.shows(mode="on", fallback=None), "the idle engine to take orders")
    heard = set()
    quiet_until_s = time.monotonic() + QUIET_S
    while time.monotonic() < quiet_until_s:
        heard.add(site.snapshot()["time_s"])
        time.sleep(0.1)
    assert len(heard) >= QUIET_S / 2, "it says that it is there, about once a second"


def test_an_idle_engine_hands_over_what_it_has_to_tell(site: Site, server: VllmServer, ask: Ask) -> None:
    """The controller hung while the last requests were answered; no further one is needed, and the order is back."""
    site.hang_controller()
    try:
        names = answers(server, ask, 5)
        time.sleep(HANGS_S)
    finally:
        site.resume_controller()
    site.wait_for(lambda: recorded(site, names) == [1] * 5, "the ends of all five in the history")
    site.wait_for(lambda: site.shows(mode="on", fallback=None), "the idle engine to take orders again")


def test_an_engine_that_is_stopped_right_after_a_hang_loses_nothing(site: Site, server: VllmServer, ask: Ask) -> None:
    """It is stopped in order in the moment in which its controller goes on. Comes last: it stops the server."""
    site.hang_controller()
    try:
        names = answers(server, ask, 10)
        time.sleep(HANGS_S)
    finally:
        site.resume_controller()
    server.stop()
    site.wait_for(lambda: recorded(site, names) == [1] * 10, "the ends of all ten in the history")
    site.wait_for(lambda: site.query("SELECT 1 FROM engines WHERE event = 'left'"), "the goodbye in the history")
