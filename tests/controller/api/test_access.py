"""Who may look and who may switch: with tokens and without, from everywhere; and the record of who switched."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cli.main import run
from controller.config import load_config
from store.errors import ConfigError
from store.history.reader import open_history
from store.http_callers import Rate, host_name

Start = Callable[..., Any]
TOKEN, READ_TOKEN = "zebra-token-0123456789abcdef", "mouse-token-0123456789abcdef"
BOTH = {"port": 0, "token": TOKEN, "read_token": READ_TOKEN}
OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")
ORDER = {"mode": "shadow"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost"},
        {"Host": "evil.example"},
        {"X-Forwarded-For": "10.0.0.1"},
        bearer("wrong"),
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ],
)
def test_a_token_that_is_set_is_always_asked_for(start_controller: Start, headers: dict[str, str]) -> None:
    """From this machine too, whatever name and proxy the caller comes by: a proxy's requests come from loopback."""
    client = start_controller(http=BOTH).client
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            answer = client.request(method, path.replace("{request_id}", "r"), headers=headers, json=ORDER)
            assert (answer.status_code == 401) is (path not in OPEN), path
            assert path in OPEN or answer.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/api/state", headers=bearer(TOKEN)).json()["controller"]["mode"] == "on"


def test_probes_tell_nothing_secret(start_controller: Start) -> None:
    """They need no token: that the loop runs, how many engines there are and what kind of thing is amiss."""
    client = start_controller(http=BOTH).client
    assert set(client.get("/healthz").json()) == {"status", "loop_age_s"}
    assert set(client.get("/readyz").json()) <= {"status", "engines", "degraded"}


def test_whoever_may_look_may_not_switch(start_controller: Start) -> None:
    """The token that may look gets every answer and switches nothing; the other one does both."""
    running = start_controller(http=BOTH)
    client = running.client
    for path in ("/api/state", "/api/queue", "/api/health", "/metrics", "/api/finished"):
        assert client.get(path, headers=bearer(READ_TOKEN)).status_code == 200
    refused = client.post("/api/mode", json=ORDER, headers=bearer(READ_TOKEN))
    assert refused.status_code == 403
    assert "may look and not switch" in refused.json()["error"]
    assert client.get("/api/state", headers=bearer(READ_TOKEN)).json()["controller"]["mode"] == "on"
    assert client.post("/api/mode", json=ORDER, headers=bearer(TOKEN)).status_code == 200


def test_with_a_token_to_look_alone_nobody_switches(start_controller: Start) -> None:
    """A token is configured, so it is asked for; none of those that are may switch."""
    client = start_controller(http={"port": 0, "read_token": READ_TOKEN}).client
    assert client.get("/api/state").status_code == 401
    assert client.get("/api/state", headers=bearer(READ_TOKEN)).status_code == 200
    assert client.post("/api/mode", json=ORDER, headers=bearer(READ_TOKEN)).status_code == 403


def test_without_a_token_only_this_machine_is_answered(start_controller: Start) -> None:
    """Under a name of its own and through no proxy, which would make everybody local."""
    client = start_controller().client
    assert client.get("/api/state").status_code == 200
    for headers in (
        {"Host": "evil.example"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
    ):
        answer = client.post("/api/mode", json={"mode": "off"}, headers=headers)
        assert answer.status_code == 401
        assert "http.token" in answer.json()["remedy"]
    assert client.get("/api/state").json()["controller"]["mode"] == "on"


@pytest.mark.parametrize(
    "http",
    [
        {"host": "0.0.0.0"},
        {"token": "q7z"},
        {"read_token": "q7z"},
        {"token": TOKEN, "read_token": TOKEN},
        {"token": "with space 0123456789"},
    ],
)
def test_what_would_let_anybody_in_is_refused_at_the_start(http: dict[str, str]) -> None:
    """No token beyond loopback, one that can be guessed, and one for both roles; none is repeated."""
    with pytest.raises(ConfigError, match="token") as caught:
        load_config({"http": http}, environment={})
    assert not any(value in str(caught.value) for key, value in http.items() if key != "host")


def test_switches_are_recorded_with_who_made_them(
    start_controller: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the history, as a view, and in the log: what, when, why, by whom and from where, also if nothing changed by it."""
    caplog.set_level(logging.INFO, "controller")
    running = start_controller(http=BOTH)
    port = running.client.base_url.port
    monkeypatch.setenv("SAGESCHED_HTTP__TOKEN", TOKEN)
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    assert run(["mode", "off", "--reason", "incident 42", "--api", f"http://127.0.0.1:{port}"]) == 0
    again = {"mode": "off", "reason": "sure", "who": "eve\n"}
    assert running.client.post("/api/mode", json=again, headers=bearer(TOKEN)).status_code == 200
    assert running.client.post("/api/mode", json=ORDER, headers=bearer(READ_TOKEN)).status_code == 403
    running.close()
    running.service.loop._history.close()
    with open_history(running.store) as history:
        rows = history.sql(
            "SELECT before, mode, reason, who, credential, address FROM mode_switches ORDER BY time_s"
        ).fetchall()
    here = f"ada@{socket.gethostname()}"
    assert rows == [
        ("on", "off", "incident 42", here, "token", "127.0.0.1"),
        ("off", "off", "sure", "eve\n", "token", "127.0.0.1"),
    ]
    assert f"mode on -> off by {here} (token, 127.0.0.1): incident 42" in caplog.messages


def test_the_command_line_says_that_its_token_may_only_look(
    start_controller: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sends the token that the configuration has; explain works with either."""
    port = start_controller(http=BOTH).client.base_url.port
    api = ["--api", f"http://127.0.0.1:{port}"]
    assert run(["mode", "off", *api]) == 1
    assert "SAGESCHED_HTTP__TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("SAGESCHED_HTTP__READ_TOKEN", READ_TOKEN)
    assert run(["mode", "off", *api]) == 1
    assert "may look and not switch" in capsys.readouterr().err
    assert run(["explain", "nobody", *api]) == 2
    assert "nobody" in capsys.readouterr().err


def raw(client: httpx.Client, request: bytes) -> bytes:
    """The first bytes of the answer to what no client library sends."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10.0) as connection:
        connection.sendall(request)
        return connection.recv(4096)


@pytest.mark.parametrize(
    "host", ["[::1", "a:b", "a@b", "a/b", "[", "::1", "a:99999999", "a\\b", "a b", "é", ":80", "[::1]x"]
)
def test_a_host_that_is_none_is_answered_400(
    start_controller: Start, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Before any token is looked at, without an error of ours in the log."""
    client = start_controller().client
    for path in ("/api/state", "/healthz", "/nowhere"):
        answer = raw(client, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_request_line_or_headers_beyond_the_bound_are_refused(start_controller: Start) -> None:
    """Also if they come in one piece: 400, 414 or 431 and never an answer."""
    client = start_controller().client
    line = raw(client, b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert line.split(b" ")[1] in {b"400", b"414"}
    assert client.get("/healthz", params={"q": "a" * 9_000}).status_code == 414
    many = raw(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000 + b"\r\n\r\n")
    assert many.split(b" ")[1] in {b"400", b"431"}
    assert client.get("/healthz", headers={"X": "a" * 16_300}).status_code == 431
    assert client.get("/healthz", params={"q": "a" * 7_000}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_elsewhere_cannot_even_have_the_browser_look(start_controller: Start, site: str) -> None:
    """An image or a form of another page carries no Origin when it is a GET; Sec-Fetch-Site gives it away."""
    client = start_controller().client
    assert client.get("/api/doctor", headers={"Sec-Fetch-Site": site}).status_code == 403
    for own in ("none", "same-origin"):
        assert client.get("/api/state", headers={"Sec-Fetch-Site": own}).status_code == 200


def test_probes_have_a_rate_of_their_own(start_controller: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever floods from this machine is told 429, the probe of the same address is not; slowly, for a busy machine."""
    monkeypatch.setattr("controller.api.limits.Rate", lambda **given: Rate(**(given | {"requests_per_s": 5.0})))
    client = start_controller().client
    statuses = {client.get("/nowhere").status_code for _ in range(20)}
    running_dry = [client.get("/nowhere").status_code for _ in range(1500)]
    assert statuses == {404}
    assert 429 in running_dry
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


@given(st.text())
def test_any_host_is_read_or_is_none(host: str) -> None:
    """No header makes the reading fail."""
    name = host_name(host)
    assert name is None or name.lower() in host.lower()
