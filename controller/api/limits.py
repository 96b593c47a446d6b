"""Limits of the API for one caller: size and shape of a request, request rate, and origin of web pages.

An ASGI wrapper around the application, so that the limits hold for every path, existing or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from store.http_callers import Rate, caller_of, host_name, is_foreign

PROBES = {"/healthz", "/readyz"}
"""Paths that tell nothing secret, need no token and wait for nothing."""
SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every answer: browsers must not store, frame or execute it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits for one caller."""

    target_bytes: int = 8 << 10
    """Path and query of a request."""
    header_bytes: int = 16 << 10
    body_bytes: int = 64 << 10
    requests_per_s: float = 200.0
    burst_requests: int = 1000
    callers: int = 1024
    """Callers with a rate of their own; the least recently seen is dropped."""


class BoundedRequests:
    """Refuses what no well-meaning client sends: 400, 413, 414 and 431, too frequent requests with 429, web pages with 403."""

    def __init__(self, app: ASGIApp, *, bounds: Bounds, clock: Callable[[], float]) -> None:
        self._app = app
        self._bounds = bounds
        self._rate = Rate(
            requests_per_s=bounds.requests_per_s, burst_requests=bounds.burst_requests, callers=bounds.callers
        )
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answered = _with_safe_headers(send)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, answered)
            return
        await self._app(scope, self._counted(receive), answered)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        return self._too_often(scope) or self._misshapen(scope, headers) or _from_a_page(headers)

    def _too_often(self, scope: Scope) -> JSONResponse | None:
        """Health probes have a rate of their own, which no other request of the same address can use up."""
        wait_s = self._rate.wait_s(f"{caller_of(scope)}{scope['path'] in PROBES}", self._clock())
        if wait_s == 0.0:
            return None
        error = f"more than {self._bounds.requests_per_s:g} requests a second"
        return _refused(429, error, f"try again in {math.ceil(wait_s)} s", {"Retry-After": str(math.ceil(wait_s))})

    def _misshapen(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        bounds, host = self._bounds, headers.getlist("host")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > bounds.target_bytes:
            return _refused(414, f"the address is longer than {bounds.target_bytes >> 10} KiB", "send a shorter one")
        if sum(len(name) + len(value) for name, value in headers.raw) > bounds.header_bytes:
            return _refused(431, f"the headers are larger than {bounds.header_bytes >> 10} KiB", "send fewer")
        if len(host) > 1 or (host and host[0] and host_name(host[0]) is None):
            return _refused(400, "the header Host is no host", "send HOST or HOST:PORT, once")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > bounds.body_bytes:
            return _refused(413, *self._too_large())
        return None

    def _counted(self, receive: Receive) -> Receive:
        """Cut off a body that is longer than the limit, whatever its Content-Length."""
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._bounds.body_bytes:
                error, remedy = self._too_large()
                raise HTTPException(status_code=413, detail={"error": error, "remedy": remedy})
            return message

        return counted

    def _too_large(self) -> tuple[str, str]:
        return f"the body is larger than {self._bounds.body_bytes >> 10} KiB", "send less, and its Content-Length"


def _from_a_page(headers: Headers) -> JSONResponse | None:
    """Refuse what a browser sends for a page of another address: by its Origin, and by Sec-Fetch-Site where it has none.

    A page of another server on this machine counts as ``same-site``; what the operator types or opens is ``none``.
    """
    site = headers.get("sec-fetch-site", "none")
    if site in {"none", "same-origin"} and not is_foreign(headers.get("origin"), headers.get("host", "")):
        return None
    return _refused(403, "a web page of another address asks", "use the dashboard, or a client that is no page")


def _refused(status: int, error: str, remedy: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error, "remedy": remedy}, status_code=status, headers=headers)


def _with_safe_headers(send: Send) -> Send:
    async def answered(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(SAFE_HEADERS)
        await send(message)

    return answered
