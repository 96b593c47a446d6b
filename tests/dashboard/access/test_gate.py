"""Who gets past the gate: by name, origin, proxy and login; over HTTP and over a websocket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from dashboard.access.gate import FORM_BYTES, Gate
from dashboard.access.sessions import COOKIE, SESSION_S, SESSIONS, Person, Sessions
from dashboard.access.settings import AccessSettings, access_settings
from store.errors import ConfigError

TOKEN, READ_TOKEN = "zebra-token-0123456789abcdef", "mouse-token-0123456789abcdef"
HERE = "127.0.0.1:8501"
STREAM = "/_stcore/stream"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Site:
    """A gate before an application that serves everything."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        found = AccessSettings(**settings)
        self.sessions = Sessions(found, self.clock)
        gate = Middleware(Gate, settings=found, sessions=self.sessions, clock=self.clock)
        routes = [
            Route("/{path:path}", self._serve, methods=["GET", "POST"]),
            WebSocketRoute("/{path:path}", self._talk),
        ]
        self.client = TestClient(
            Starlette(routes=routes, middleware=[gate]), base_url=f"http://{HERE}", follow_redirects=False
        )

    async def _serve(self, _request: object) -> PlainTextResponse:
        return PlainTextResponse("served")

    async def _talk(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    def connects(self, **headers: str) -> bool:
        """Whether a websocket is opened."""
        try:
            with self.client.websocket_connect(f"ws://{HERE}{STREAM}", headers=headers):
                return True
        except WebSocketDisconnect:
            return False

    def log_in(self, token: str, onwards: str = "/", **headers: str) -> Any:
        return self.client.post(
            "/login",
            params={"next": onwards},
            data={"token": token, "name": " Ada "},
            headers={"Origin": f"http://{HERE}"} | headers,
        )


@pytest.fixture
def open_site() -> Site:
    return Site()


@pytest.fixture
def site() -> Site:
    return Site(token=TOKEN, read_token=READ_TOKEN, names=frozenset({"dash.example"}))


@pytest.mark.parametrize(
    ("host", "served"),
    [
        (HERE, True),
        ("localhost:8501", True),
        ("[::1]:8501", True),
        ("evil.example:8501", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example#127.0.0.1", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_name_that_is_not_its_own_gets_nothing(open_site: Site, host: str, *, served: bool) -> None:
    """A web page's own name that points at this machine is refused, over HTTP and over the websocket."""
    assert (open_site.client.get("/", headers={"Host": host}).status_code == 200) is served
    assert open_site.connects(Host=host, Origin=f"http://{host}") is served


@pytest.mark.parametrize(
    "origin", ["http://evil.example:8501", "http://127.0.0.1:9999", "null", "http://[", "https://localhost"]
)
def test_a_page_of_another_address_gets_nothing(open_site: Site, origin: str) -> None:
    """Another server on this machine is another address too."""
    assert not open_site.connects(Host=HERE, Origin=origin)
    assert open_site.client.post("/_stcore/upload_file/a/b", headers={"Origin": origin}).status_code == 403
    assert open_site.connects(Host=HERE, Origin=f"http://{HERE}")


def test_nothing_is_fetched_for_another_page_but_links_are_followed(open_site: Site) -> None:
    """Images, frames and scripts of other pages are refused by Sec-Fetch-Site; a link in a wiki opens the page."""
    for site in ("cross-site", "same-site"):
        for mode, destination in (("no-cors", "image"), ("navigate", "iframe"), ("cors", "empty")):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
            assert open_site.client.get("/", headers=headers).status_code == 403
        link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert open_site.client.get("/latency", headers=link).status_code == 200
        assert open_site.client.post("/latency", headers=link).status_code == 403
    answer = open_site.client.get("/")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
def test_no_proxy_lets_everybody_into_a_dashboard_without_a_login(open_site: Site, site: Site, header: str) -> None:
    """With a login it may stand before it."""
    assert open_site.client.get("/", headers={header: "127.0.0.1"}).status_code == 403
    assert not open_site.connects(**{"Host": HERE, header: "127.0.0.1"})
    assert site.client.get("/login", headers={header: "127.0.0.1"}).status_code == 200


def test_without_a_session_there_is_the_login_page_and_nothing_else(site: Site) -> None:
    """Pages lead to it, files and the websocket are refused; only the probe answers, which says 'ok'."""
    page = site.client.get("/latency?part=tenant:a", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["Location"]) == (303, "/login?next=%2Flatency%3Fpart%3Dtenant%3Aa")
    assert site.client.get("/media/file").status_code == 401
    assert site.client.post("/_stcore/upload_file/a/b").status_code == 401
    assert not site.connects(Host=HERE, Origin=f"http://{HERE}")
    assert site.client.get("/_stcore/health").status_code == 200
    assert "<script" not in site.client.get("/login").text


@pytest.mark.parametrize(("token", "role"), [(TOKEN, "switch"), (READ_TOKEN, "look")])
def test_a_token_begins_a_session_with_its_role(site: Site, token: str, role: str) -> None:
    """A cookie that no script can read leads to whoever logged in, until the session is over or ended."""
    answer = site.log_in(token, "/latency?range=all")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/latency?range=all")
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert "SameSite=lax" in answer.headers["Set-Cookie"]
    assert "Secure" not in answer.headers["Set-Cookie"]
    assert token not in answer.headers["Set-Cookie"]
    session = answer.cookies[COOKIE]
    assert site.sessions.person(session) == Person(role, "Ada")
    assert site.client.get("/").text == "served"
    assert site.connects(Host=HERE, Origin=f"http://{HERE}", Cookie=f"{COOKIE}={session}")
    site.clock.now_s += SESSION_S
    assert site.sessions.person(session) is None
    site.clock.now_s -= 1.0
    assert site.client.get("/").status_code == 200
    assert site.client.get("/logout").headers["Location"] == "/login"
    assert site.client.get("/").status_code == 401
    assert site.sessions.person(session) is None


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x", "é\ud800"])
def test_any_other_token_begins_none(site: Site, token: str) -> None:
    """What is told is the same for all."""
    if token.isascii():
        answer = site.log_in(token)
        assert answer.status_code == 401
        assert "This token is not valid." in answer.text
        assert "Set-Cookie" not in answer.headers
    assert site.sessions.begin(token, None) is None


def test_tokens_are_not_tried_in_numbers(site: Site) -> None:
    """After ten attempts an address must wait, with the right token too; another address need not."""
    answers = [site.log_in("wrong").status_code for _ in range(12)]
    assert answers == [401] * 10 + [429] * 2
    refused = site.log_in(TOKEN)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
    site.clock.now_s += 10.0
    assert site.log_in(TOKEN).status_code == 303


@pytest.mark.parametrize(
    "onwards", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:1", "/a\nb", ""]
)
def test_the_login_leads_nowhere_else(site: Site, onwards: str) -> None:
    """An address in a link to the login cannot send people to another server."""
    assert site.log_in(TOKEN, onwards).headers["Location"] == "/"


def test_a_form_that_is_none_is_refused(site: Site) -> None:
    """Too long, sent by no page, not text, or by another page, which could log people in as somebody else."""
    own = {"Origin": f"http://{HERE}"}
    assert site.client.post("/login", content=b"token=" + b"a" * FORM_BYTES, headers=own).status_code == 400
    assert site.client.post("/login", content=b"token=\xff", headers=own).status_code == 400
    assert site.client.post("/login", data={"token": TOKEN}).status_code == 400
    assert site.log_in(TOKEN, Origin="http://127.0.0.1:9999").status_code == 403


def test_a_cookie_is_for_https_alone_where_the_page_is(site: Site) -> None:
    """As a proxy with TLS says it is."""
    client = TestClient(site.client.app, base_url="https://dash.example", follow_redirects=False)
    answer = client.post("/login", data={"token": TOKEN}, headers={"Origin": "https://dash.example"})
    assert "Secure" in answer.headers["Set-Cookie"]


def test_sessions_are_bounded(site: Site) -> None:
    """The first ones end."""
    begun = [site.sessions.begin(TOKEN, None) for _ in range(SESSIONS + 3)]
    assert [site.sessions.person(session) is None for session in begun[:4]] == [True, True, True, False]
    assert len(set(begun)) == len(begun)


@given(
    st.dictionaries(
        st.sampled_from(["host", "cookie", "origin", "sec-fetch-site"]), st.text(st.characters(max_codepoint=255))
    )
)
def test_no_header_makes_it_fail_or_lets_anybody_in(headers: dict[str, str]) -> None:
    """Whatever a client sends: refused, or sent to the login."""
    site = Site(token=TOKEN)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "scheme": "http",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        await site.client.app(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] in {401, 403}


@pytest.mark.parametrize(
    ("host", "names", "environment"),
    [
        ("0.0.0.0", ["d.example"], {}),
        ("10.0.0.5", [], {}),
        ("::", [], {"SAGESCHED_HTTP__TOKEN": TOKEN}),
        ("127.0.0.1", [], {"SAGESCHED_STORE__PROMPTS": "True"}),
        ("127.0.0.1", ["d.example:80"], {}),
        ("127.0.0.1", ["*"], {}),
    ],
)
def test_settings_that_let_anybody_in_are_refused(host: str, names: list[str], environment: dict[str, str]) -> None:
    """Beyond loopback or with stored prompts only with a login; on every address only under names."""
    with pytest.raises(ConfigError):
        access_settings(host, names, environment)


def test_names_come_from_flags_environment_and_address() -> None:
    """An address that is listened on is a name too."""
    found = access_settings(
        "10.0.0.5",
        ["A.example"],
        {"SAGESCHED_HTTP__READ_TOKEN": READ_TOKEN, "SAGESCHED_DASHBOARD_NAMES": "b.example, ::2"},
    )
    assert found.names == {"10.0.0.5", "a.example", "b.example", "::2"}
    assert found.serves("[::2]:8501")
    assert READ_TOKEN not in repr(found)
