"""What stands before Streamlit: every request and every websocket is let through, sent to the login, or refused.

Streamlit itself accepts any host name and, on a websocket, any Origin that equals it, so that a web page which points its
own name at this machine could drive the pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard.access.login_page import login_page
from dashboard.access.sessions import COOKIE, SESSION_S, Sessions
from dashboard.access.settings import AccessSettings
from store.http_callers import FORWARDED, Rate, caller_of, is_foreign

HEALTH = "/_stcore/health"
LOGIN, LOGOUT = "/login", "/logout"
FORM_BYTES = 4096
NAME_CHARACTERS = 100
SAFE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' blob: data:; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Referrer-Policy": "same-origin",  # Without any, browsers send the login's form with the Origin "null".
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every answer: the browser fetches nothing from another host, and no other page frames these."""


class Gate:
    """ASGI middleware around Streamlit's application."""

    def __init__(
        self, app: ASGIApp, *, settings: AccessSettings, sessions: Sessions, clock: Callable[[], float]
    ) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions
        self._clock = clock
        self._attempts = Rate(requests_per_s=0.1, burst_requests=10)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refusal(scope, headers) or await self._at_the_door(scope, headers, receive)
        if scope["type"] == "websocket":
            await (
                self._app(scope, receive, send) if answer is None else send({"type": "websocket.close", "code": 1008})
            )
        else:
            await (answer or self._app)(scope, receive, _with_safe_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse what comes under another name, for another web page, or through a proxy that lets everybody in."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._settings.serves(hosts[0]):
            return _refused("The dashboard is not served under this name: start it with --name, or open it by its own.")
        if is_foreign(headers.get("origin"), hosts[0]) or _is_embedded(scope, headers):
            return _refused("A web page of another address asks.")
        if self._settings.login == "none" and any(name in headers for name in FORWARDED):
            return _refused("A proxy stands before a dashboard without a login: set SAGESCHED_HTTP__TOKEN.")
        return None

    async def _at_the_door(self, scope: Scope, headers: Headers, receive: Receive) -> Response | None:
        """Ask whoever is not logged in to do so; None for those who may pass.

        With OpenID Connect the pages ask: what Streamlit serves beside them is its own program text.
        """
        path, method, session = scope["path"], scope.get("method"), _session(headers)
        if self._settings.login != "token" or path == HEALTH:
            return None
        if path == LOGIN:
            return await self._log_in(scope, headers, receive) if method == "POST" else HTMLResponse(login_page(""))
        if path == LOGOUT:
            self._sessions.end(session)
            return RedirectResponse(LOGIN, 303)
        if self._sessions.person(session) is not None:
            return None
        if method == "GET" and "text/html" in headers.get("accept", ""):
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse(f"{LOGIN}?next={quote(f'{path}?{query}' if query else path, safe='')}", 303)
        return PlainTextResponse("Log in first.", 401)

    async def _log_in(self, scope: Scope, headers: Headers, receive: Receive) -> Response:
        wait_s = math.ceil(self._attempts.wait_s(caller_of(scope), self._clock()))
        if wait_s > 0:
            page = login_page(f"Too many attempts: try again in {wait_s} s.")
            return HTMLResponse(page, 429, {"Retry-After": str(wait_s)})
        form = await _form(receive)
        if form is None or "origin" not in headers:
            return PlainTextResponse("Send the form of the login page.", 400)
        session = self._sessions.begin(form.get("token", ""), form.get("name", "").strip()[:NAME_CHARACTERS] or None)
        if session is None:
            return HTMLResponse(login_page("This token is not valid."), 401)
        onwards = parse_qs(scope["query_string"].decode("latin-1")).get("next", ["/"])[0]
        answer = RedirectResponse(onwards if _is_own(onwards) else "/", 303)
        secure = scope["scheme"] == "https"
        answer.set_cookie(COOKIE, session, max_age=round(SESSION_S), httponly=True, samesite="lax", secure=secure)
        return answer


def _is_embedded(scope: Scope, headers: Headers) -> bool:
    """Whether a browser fetches something for a page of another address; following a link from there is none of it."""
    if headers.get("sec-fetch-site", "none") in {"none", "same-origin"}:
        return False
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return not (is_link and scope.get("method") == "GET")


def _is_own(path: str) -> bool:
    r"""Whether an address stays on this server.

    >>> _is_own("/latency?range=all"), _is_own("//evil.example"), _is_own("/\\evil.example"), _is_own("https://e")
    (True, False, False, False)
    """
    return path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()


def _session(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found is not None else None


async def _form(receive: Receive) -> dict[str, str] | None:
    """The fields of a form of bounded size; None for what is none."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if message["type"] != "http.request" or len(body) > FORM_BYTES:
            return None
    try:
        return {name: values[-1] for name, values in parse_qs(body.decode(), max_num_fields=4).items()}
    except ValueError:
        return None


def _refused(text: str) -> Response:
    return PlainTextResponse(text, 403)


def _with_safe_headers(send: Send) -> Send:
    async def answered(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(SAFE_HEADERS)
        await send(message)

    return answered
