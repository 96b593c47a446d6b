"""Connections that say nothing, or say it slowly, and what is logged of them."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from controller.api import server
from controller.api.server import CONNECTIONS, LINES_A_MINUTE, WebServer
from controller.monitoring.surroundings import open_files

SLOW_S = 3.0
MUCH_BYTES = 8 << 20
"""More than the system keeps for a connection whose other end reads nothing."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.URL]:
    """A server that waits two seconds for a request."""
    monkeypatch.setattr(server, "REQUEST_S", 2.0)
    api = FastAPI()

    @api.get("/slow")
    def slow() -> str:
        time.sleep(SLOW_S)
        return "done"

    @api.get("/much")
    def much() -> Response:
        return Response(b"x" * MUCH_BYTES)

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


@pytest.mark.slow
def test_what_nobody_reads_is_not_kept_for_ever(url: httpx.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that ask and never read are cut off, and others are answered meanwhile; one that reads slowly gets all."""
    monkeypatch.setattr(server, "UNREAD_S", 2.0)
    deaf = [ask_for_much(url) for _ in range(CONNECTIONS // 2)]
    try:
        with httpx.stream("GET", url.join("/much"), timeout=10.0) as answer:
            received_bytes = 0
            for part in answer.iter_raw(MUCH_BYTES // 20):
                assert httpx.get(url.join("/none")).status_code == 404
                received_bytes += len(part)
                time.sleep(0.2)
        assert received_bytes == MUCH_BYTES
        assert all(map(is_cut_off, deaf))
    finally:
        for each in deaf:
            each.close()


def ask_for_much(url: httpx.URL) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10.0)
    connection.connect((url.host, url.port or 0))
    connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
    return connection


def is_cut_off(connection: socket.socket) -> bool:
    received_bytes = 0
    try:
        while part := connection.recv(1 << 20):
            received_bytes += len(part)
    except ConnectionError:
        pass
    return received_bytes < MUCH_BYTES


@pytest.mark.slow
def test_connections_leave_files_for_the_history_and_for_engines(
    url: httpx.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are opened at once, they have a quarter of the files that may be open, and soon others are answered."""
    monkeypatch.setattr(server, "open_files_limit", lambda: 256)
    before = open_files()
    silent = [connected(url) for _ in range(500)]
    try:
        time.sleep(0.5)
        assert open_files() - before - len(silent) <= 64 + 5
        time.sleep(2.5)
        assert httpx.get(url.join("/none")).status_code == 404
    finally:
        for each in silent:
            each.close()
