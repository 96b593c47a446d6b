"""What one caller can take from the API, and what no answer and no log line may hold."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from controller.api.limits import BoundedRequests, Bounds
from store.http_callers import Rate

Start = Callable[..., Any]
TOKEN = "zebra-token-0123456789abcdef"


class ManualClock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_caller_that_asks_too_often_waits() -> None:
    """429 with the time to wait, for this caller only; after that time it is answered again."""
    clock = ManualClock()
    api = FastAPI()
    api.add_api_route("/", lambda: "here")
    bounded = BoundedRequests(api, bounds=Bounds(requests_per_s=0.5, burst_requests=3), clock=clock)

    async def ask(caller: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=bounded, client=(caller, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/")

    async def story() -> None:
        assert [(await ask("10.0.0.1")).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = await ask("10.0.0.1")
        assert refused.headers["Retry-After"] == "2"
        assert set(refused.json()) == {"error", "remedy"}
        assert (await ask("10.0.0.2")).status_code == 200
        clock.now_s += 2.0
        assert (await ask("10.0.0.1")).status_code == 200
        clock.now_s -= 50.0
        assert (await ask("10.0.0.1")).status_code == 429

    asyncio.run(story())


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(-5.0, 5.0)), max_size=200))
def test_no_caller_gets_more_than_its_rate_and_burst(asked: list[tuple[int, float]]) -> None:
    """Whatever the order and whatever the clock does; the memory for callers is bounded."""
    rate, now_s, forward_s = Rate(requests_per_s=2.0, burst_requests=4, callers=30), 0.0, 0.0
    let_in: dict[int, int] = {}
    for caller, passed_s in asked:
        now_s += passed_s
        forward_s += max(0.0, passed_s)
        let_in[caller] = let_in.get(caller, 0) + (rate.wait_s(str(caller), now_s) == 0.0)
        assert let_in[caller] <= 4 + 2.0 * forward_s + 1e-6
    few = Rate(requests_per_s=2.0, burst_requests=4, callers=5)
    for caller, _ in asked:
        few.wait_s(str(caller), 0.0)
    assert len(few._buckets) <= 5


def body(length: int) -> Iterator[bytes]:
    for _ in range(length // 1000):
        yield b" " * 1000


def test_a_body_that_is_too_large_is_refused_unread(start_controller: Start) -> None:
    """413 whether its length is told, told wrong or not told at all; a body within the bound is read."""
    client = start_controller().client
    for content in (b" " * 70_000, body(70_000)):
        answer = client.post("/api/mode", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert "64 KiB" in answer.json()["error"]
    assert client.post("/api/mode", content=body(30_000)).status_code == 422
    assert client.get("/api/state").status_code == 200


def test_a_header_that_does_not_end_is_refused(start_controller: Start) -> None:
    """The connection is closed, instead of memory that grows."""
    url = httpx.URL(str(start_controller().client.base_url))
    with socket.create_connection((url.host, url.port or 0), timeout=10.0) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        with pytest.raises(ConnectionError):
            send_much(connection)


def send_much(connection: socket.socket) -> None:
    for _ in range(10_000):
        connection.sendall(b"x" * 1024)


@pytest.mark.slow
def test_another_web_page_gets_nothing(start_controller: Start) -> None:
    """A page in the operator's browser may reach 127.0.0.1, but its Origin gives it away; scripts run nowhere."""
    client = start_controller().client
    order = {"mode": "off"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
        assert client.post("/api/mode", json=order, headers={"Origin": origin}).status_code == 403
    assert client.get("/api/state").json()["controller"]["mode"] == "on"
    own = str(client.base_url).rstrip("/")
    assert client.post("/api/mode", json=order, headers={"Origin": own}).status_code == 200
    answer = client.get("/docs")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script" not in answer.text
    assert "/api/explain/{request_id}" in answer.text
    for path in ("/nowhere", "/healthz"):
        assert client.get(path).headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.slow
def test_the_token_is_in_no_log_line_and_in_no_answer(
    start_controller: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked with it, right or wrong, also when our own code fails."""
    caplog.set_level(logging.DEBUG)
    running = start_controller(http={"port": 0, "token": TOKEN})
    right = {"Authorization": f"Bearer {TOKEN}"}
    running.client.headers.update({"Authorization": ""})
    answers = [
        running.client.request(method, path, headers=headers)
        for headers in (
            right,
            {**right, "Host": "evil.example"},
            {"Host": "evil.example", "Authorization": f"Basic {TOKEN}"},
        )
        for method, path in (
            *(("GET", path) for path in ("/api/state", "/api/health", "/api/finished", "/metrics", "/docs", "/x")),
            ("POST", "/api/mode"),
            ("GET", "/api/queue?limit=x"),
        )
    ]
    assert {answer.status_code for answer in answers} >= {200, 401, 404, 422}
    monkeypatch.setattr("controller.api.recent.read_finished", _fail)
    failed = httpx.get(running.client.base_url.join("/api/finished"), headers=right)
    assert failed.status_code == 500
    assert failed.json()["remedy"] == "see the controller's log"
    assert "broken" not in failed.text
    answers += [failed, running.client.get("/api/health")]
    for answer in answers:
        assert TOKEN not in answer.text
        assert TOKEN not in str(answer.headers)
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert ours
    assert not any(TOKEN in record.getMessage() for record in ours)
    assert TOKEN not in repr(running.service)


def _fail(*_arguments: object) -> None:
    raise RuntimeError("broken")
