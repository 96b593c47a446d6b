"""Connections that say nothing, or say it slowly, and what is logged of them."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request

from controller.api import server
from controller.api.server import CONNECTIONS, LINES_A_MINUTE, WebServer

SLOW_S = 3.0


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.URL]:
    """A server that waits two seconds for a request."""
    monkeypatch.setattr(server, "REQUEST_S", 2.0)
    api = FastAPI()

    @api.get("/slow")
    def slow() -> str:
        time.sleep(SLOW_S)
        return "done"

    @api.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    web = WebServer("127.0.0.1", 0)
    web.start(api)
    yield httpx.URL(web.address)
    web.stop()


def connected(url: httpx.URL) -> socket.socket:
    return socket.create_connection((url.host, url.port or 0), timeout=10.0)


def test_connections_that_say_nothing_keep_nobody_out(url: httpx.URL) -> None:
    """As many as are served at a time are closed after a moment, and others are answered."""
    silent = [connected(url) for _ in range(CONNECTIONS)]
    try:
        assert httpx.get(url.join("/none")).status_code == 503
        assert [each.recv(1) for each in silent] == [b""] * CONNECTIONS
        assert httpx.get(url.join("/none")).status_code == 404
    finally:
        for each in silent:
            each.close()


@pytest.mark.parametrize(
    "begun",
    [b"GET /none HTTP/1.1\r\nHost: a\r\nX: ", b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"],
)
@pytest.mark.parametrize("before", [b"", b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_request_that_comes_byte_by_byte_is_cut_off(url: httpx.URL, begun: bytes, before: bytes) -> None:
    """Head or body, the first of a connection or a later one: each byte does not begin the time anew."""
    with connected(url) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(4096).startswith(b"HTTP/1.1 404")
        started_s = time.monotonic()
        with pytest.raises(ConnectionError):
            trickle(connection, begun)
        assert time.monotonic() - started_s < 8.0


def trickle(connection: socket.socket, begun: bytes) -> None:
    connection.sendall(begun)
    for _ in range(100):
        time.sleep(0.1)
        connection.sendall(b"x")


def test_a_slow_answer_is_waited_for(url: httpx.URL) -> None:
    """The time is for the request; also where the body came in pieces, and on a connection that is used again."""
    with httpx.Client(base_url=url, timeout=20.0) as client:
        for _ in range(2):
            assert client.get("/slow").json() == "done"
            assert client.post("/read", content=(b"x" * 10 for _ in range(10))).json() == 100


def test_garbage_fills_no_log(url: httpx.URL, caplog: pytest.LogCaptureFixture) -> None:
    """A few lines a minute, however often somebody sends what is no request."""
    for _ in range(5 * LINES_A_MINUTE):
        with connected(url) as connection:
            connection.sendall(b"\x00\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    lines = [record for record in caplog.records if "Invalid HTTP request" in record.getMessage()]
    assert 1 <= len(lines) <= 2 * LINES_A_MINUTE
    assert logging.getLogger("uvicorn.error").level == logging.WARNING
