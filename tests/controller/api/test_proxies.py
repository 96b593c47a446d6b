"""The API and the dashboard behind the real nginx, Caddy and HAProxy, with the configurations of docs/deploy/proxies."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from engine_adapter.serving.processes import free_port
from store.history.reader import open_history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".cache" / "proxies"
DOCUMENTED = ROOT / "docs" / "deploy" / "proxies"
TOKEN, READ_TOKEN = "zebra-token-0123456789abcdef", "mouse-token-0123456789abcdef"
TOKENS = {"token": TOKEN, "read_token": READ_TOKEN}
API, DASHBOARD = "sagesched.example", "dash.example"
Start = Callable[..., Any]

COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nginx": ("nginx.conf", ("-g", "daemon off; pid nginx.pid; error_log stderr;", "-p", "{folder}", "-c", "{file}")),
    "caddy": ("Caddyfile", ("run", "--adapter", "caddyfile", "--config", "{file}")),
    "haproxy": ("haproxy.cfg", ("-db", "-f", "{file}")),
}


def program(name: str) -> str:
    found = shutil.which(name) or next((str(path) for path in CACHE.glob(f"usr/*bin/{name}")), None)
    if found is None:
        pytest.skip(f"{name} is not here: run `make proxies`, or install it")
    return found


@dataclass(frozen=True)
class Proxy:
    """A running proxy: ports before it and behind it."""

    port: int
    api_port: int
    dashboard_port: int

    @property
    def dashboard_origin(self) -> str:
        return f"https://{DASHBOARD}:{self.port}"

    def ask(self, method: str, path: str, *, host: str = API, **options: Any) -> httpx.Response:
        """Ask under a name; ``headers`` may give another in ``Host``."""
        headers = {"Host": f"{host}:{self.port}"} | options.pop("headers", {})
        with httpx.Client(verify=False, timeout=20.0) as client:  # noqa: S501 - the test's own certificate
            url = f"https://127.0.0.1:{self.port}{path}"
            return client.request(method, url, headers=headers, extensions={"sni_hostname": host}, **options)

    def opens(self, headers: dict[str, str], origin: str) -> bool:
        """Whether the dashboard's websocket opens; a connection that ends without an answer is tried again."""
        for _ in range(3):
            with suppress(InvalidMessage):
                return self._opens_at_once(headers, origin)
        pytest.fail(f"no answer from the proxy in three tries, Origin {origin}")

    def _opens_at_once(self, headers: dict[str, str], origin: str) -> bool:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            try:
                with connect(
                    f"wss://{DASHBOARD}:{self.port}/_stcore/stream",
                    sock=connection,
                    ssl=context,
                    origin=origin,  # type: ignore[arg-type]
                    additional_headers=headers,
                    subprotocols=["streamlit"],  # type: ignore[list-item]
                    open_timeout=60,
                ):
                    return True
            except InvalidStatus:
                return False


@pytest.fixture(params=list(COMMANDS))
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    """The proxy with its documented configuration; only ports, the certificate and where it writes are the test's."""
    name = request.param
    executable, (file, arguments) = program(name), COMMANDS[name]
    ports = Proxy(*(free_port(0) for _ in range(3)))
    folder = tmp_path / "proxy"
    folder.mkdir()
    make_certificate(folder)
    text = configured((DOCUMENTED / file).read_text(), ports, folder, name)
    (folder / file).write_text(text)
    command = [executable, *(word.format(folder=folder, file=folder / file) for word in arguments)]
    libraries = ":".join(str(path.parent) for path in CACHE.glob("usr/lib/*/*.so.*"))
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "HOME": str(folder)}
    with running(command, environment, folder / "log"):
        wait_until(lambda: listens(ports.port), folder / "log")
        yield ports


def configured(text: str, ports: Proxy, folder: Path, name: str) -> str:
    replaced = {
        "/etc/sagesched/tls": str(folder),
        ":8700": f":{ports.api_port}",
        ":8501": f":{ports.dashboard_port}",
        "listen 443": f"listen 127.0.0.1:{ports.port}",
        "bind :443": f"bind 127.0.0.1:{ports.port}",
    }
    if name == "caddy":
        replaced |= {f"https://{host}": f"https://{host}:{ports.port}" for host in (API, DASHBOARD)}
    if name == "nginx":
        kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ours = "".join(f"{part}_temp_path {folder}/{part};" for part in kept)
        replaced["http {"] = f"http {{ access_log off; {ours}"
    for old, new in replaced.items():
        text = text.replace(old, new)
    return text


def make_certificate(folder: Path) -> None:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", f"/CN={API}", "-addext", f"subjectAltName=DNS:{API},DNS:{DASHBOARD}"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True, timeout=60)
    (folder / "both.pem").write_text((folder / "certificate.pem").read_text() + (folder / "key.pem").read_text())


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20.0)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], log: Path) -> None:
    until_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < until_s, log.read_text()[-2000:]
        time.sleep(0.1)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_nobody_passes_a_proxy_without_a_token(proxy: Proxy, start_controller: Start) -> None:
    """Whatever name and address the caller claims; with a token each has its role, and the record has its address."""
    running = start_controller(http={"port": proxy.api_port, **TOKENS})
    order = {"mode": "shadow"}
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Real-IP": "127.0.0.1"}, bearer("no")):
        assert proxy.ask("POST", "/api/mode", json=order, headers=headers).status_code == 401
    with suppress(httpx.RemoteProtocolError):  # nginx closes the connection, the others answer for nobody.
        assert not proxy.ask("POST", "/api/mode", json=order, headers={"Host": "localhost"}).content.startswith(b"{")
    assert proxy.ask("GET", "/healthz").status_code == 200
    assert proxy.ask("GET", "/api/state", headers=bearer(READ_TOKEN)).json()["controller"]["mode"] == "on"
    assert proxy.ask("POST", "/api/mode", json=order, headers=bearer(READ_TOKEN)).status_code == 403
    spoofed = bearer(TOKEN) | {"X-Forwarded-For": "10.9.9.9"}
    assert proxy.ask("POST", "/api/mode", json=order, headers=spoofed).status_code == 200
    running.close()
    running.service.loop._history.close()
    with open_history(running.store) as history:
        assert history.sql("SELECT address FROM mode_switches").fetchall() == [("127.0.0.1",)]


def test_a_proxy_before_a_controller_without_a_token_lets_nobody_in(proxy: Proxy, start_controller: Start) -> None:
    """It would make everybody a caller from this machine."""
    start_controller(http={"port": proxy.api_port})
    answer = proxy.ask("POST", "/api/mode", json={"mode": "off"})
    assert answer.status_code == 401
    assert "http.token" in answer.json()["remedy"]
    assert httpx.get(f"http://127.0.0.1:{proxy.api_port}/api/state").json()["controller"]["mode"] == "on"


def test_the_dashboard_is_opened_through_a_proxy_by_its_name_and_with_a_login(proxy: Proxy, tmp_path: Path) -> None:
    """Login, a cookie for HTTPS alone, and the websocket; another page's Origin opens none."""
    command = [sys.executable, "-m", "dashboard", "--port", str(proxy.dashboard_port), "--name", DASHBOARD]
    environment = {**os.environ, "SAGESCHED_HTTP__TOKEN": TOKEN}
    with running(command, environment, tmp_path / "log"):
        wait_until(lambda: listens(proxy.dashboard_port), tmp_path / "log")
        own = {"Origin": proxy.dashboard_origin}
        assert proxy.ask("GET", "/login", host=DASHBOARD).status_code == 200
        assert proxy.ask("GET", "/", host=DASHBOARD).status_code == 401
        assert not proxy.opens({}, proxy.dashboard_origin)
        form = {"token": TOKEN}
        assert (
            proxy.ask("POST", "/login", host=DASHBOARD, data=form, headers={"Origin": "https://evil"}).status_code
            == 403
        )
        answer = proxy.ask("POST", "/login", host=DASHBOARD, data=form, headers=own)
        assert answer.status_code == 303
        cookie, *attributes = answer.headers["Set-Cookie"].split("; ")
        assert "Secure" in attributes
        assert proxy.opens({"Cookie": cookie}, proxy.dashboard_origin)
        for origin in ("https://evil.example", f"https://evil.example:{proxy.port}", f"https://{DASHBOARD}", "null"):
            assert not proxy.opens({"Cookie": cookie}, origin)


def test_nginx_as_it_is_by_default_passes_nobody_by_either(start_controller: Start, tmp_path: Path) -> None:
    """``proxy_pass`` alone names this machine as the Host and tells nothing of the caller: the token is asked for."""
    executable, port, api_port = program("nginx"), free_port(0), free_port(0)
    start_controller(http={"port": api_port, **TOKENS})
    parts = "".join(
        f"{part}_temp_path {tmp_path}/{part};" for part in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    place = f"location / {{ proxy_pass http://127.0.0.1:{api_port}; }}"
    file = tmp_path / "nginx.conf"
    file.write_text(f"events {{}} http {{ access_log off; {parts} server {{ listen 127.0.0.1:{port}; {place} }} }}")
    command = [executable, "-g", "daemon off; pid nginx.pid; error_log stderr;", "-p", str(tmp_path), "-c", str(file)]
    with running(command, dict(os.environ), tmp_path / "log"):
        wait_until(lambda: listens(port), tmp_path / "log")
        for headers in ({}, {"Host": "localhost"}, {"Host": "evil.example"}):
            answer = httpx.post(f"http://127.0.0.1:{port}/api/mode", json={"mode": "off"}, headers=headers)
            assert answer.status_code == 401
        assert httpx.get(f"http://127.0.0.1:{port}/api/state", headers=bearer(READ_TOKEN)).status_code == 200
