"""``POST /api/route``: what a router is told of the engines, and how it fares with the controller away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine_adapter.routing.client import RouteClient
from store.errors import ConfigError, EngineError
from store.http_routing import RouteOrder

Start = Callable[..., Any]
Make = Callable[..., RouteClient]
MODEL = "h800-qwen3-32b-24k"
ORDER = RouteOrder(model=MODEL, prompt_tokens=300, max_tokens=500, token_ids=(1, 2, 3))


@pytest.fixture
def make_client() -> Iterator[Callable[..., RouteClient]]:
    """Clients that are closed after the test."""
    clients: list[RouteClient] = []

    def make(address: object, **settings: Any) -> RouteClient:
        clients.append(RouteClient(str(address), **{"token": None, "timeout_s": 20.0, "connections": 1} | settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.slow
def test_a_router_is_told_of_the_connected_engines_of_its_model(start_controller: Start, make_client: Make) -> None:
    """Empty engine: no wait, all memory free. With requests unfinished: what they ask for. Other models: nothing."""
    running = start_controller()
    client = make_client(running.client.base_url)
    assert client.ask(ORDER).engines == ()
    engine = running.connect()
    engine.step_until(lambda: len(client.ask(ORDER).engines) == 1)
    (idle,) = client.ask(ORDER).engines
    assert (idle.wait_s, idle.demand_tokens, idle.behind, idle.kv_tokens) == (0.0, 0, 0, 24_000)
    assert 0.0 < idle.run_s < 500.0
    assert idle.need_tokens == 332
    for number in range(3):
        engine.submit(f"r{number}", output_tokens=400)
    engine.step_until(lambda: client.ask(ORDER).engines[0].demand_tokens > 0)
    assert client.ask(RouteOrder(model="other", prompt_tokens=1, max_tokens=1)).engines == ()


SENSELESS: tuple[dict[str, Any], ...] = (
    {},
    {"model": MODEL, "prompt_tokens": 0, "max_tokens": 1},
    {"model": MODEL, "prompt_tokens": 1, "max_tokens": -1},
    {"model": MODEL, "prompt_tokens": 1, "max_tokens": 1, "token_ids": [1, 2]},
    {"model": MODEL, "prompt_tokens": 9, "max_tokens": 1, "token_ids": [-1]},
    {"model": MODEL, "prompt_tokens": 9, "max_tokens": 1, "token_ids": [1 << 32]},
    {"model": MODEL, "prompt_tokens": 9000, "max_tokens": 1, "token_ids": [0] * 8193},
    {"model": MODEL, "prompt_tokens": 1, "max_tokens": 1, "temperature": "NaN"},
    {"model": MODEL, "prompt_tokens": 1, "max_tokens": 1, "engines": ["a"]},
)


def test_an_order_that_makes_no_sense_is_refused(start_controller: Start) -> None:
    """422 with a line that names the field; the loop never sees it."""
    client = start_controller().client
    for body in SENSELESS:
        answer = client.post("/api/route", json=body)
        assert answer.status_code == 422, body
        assert answer.json()["error"], body


def test_a_router_hears_soon_that_there_is_no_controller(start_controller: Start, make_client: Make) -> None:
    """Refused, silent or talking nonsense: an `EngineError` within the time, and an open connection is used again."""
    running = start_controller()
    client = make_client(running.client.base_url)
    for _ in range(3):
        client.ask(ORDER)
    nobody = make_client("http://127.0.0.1:9", timeout_s=0.5)
    began_s = time.monotonic()
    with pytest.raises(EngineError, match="does not answer"):
        nobody.ask(ORDER)
    assert time.monotonic() - began_s < 15.0
    elsewhere = make_client(running.client.base_url, token="not needed here")
    assert elsewhere.ask(ORDER).time_s > 0.0
    with pytest.raises(EngineError, match="answers 422"):
        client.ask(RouteOrder(model=MODEL, prompt_tokens=0, max_tokens=1))
    for address in ("127.0.0.1:8700", "ftp://here", "http://"):
        with pytest.raises(ConfigError):
            make_client(address)
