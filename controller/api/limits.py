"""Limits of the API for one caller: body size, request rate, and origin of web pages.

An ASGI wrapper around the application, so that the limits hold for every path, existing or not.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

    body_bytes: int = 64 << 10
    requests_per_s: float = 200.0
    burst_requests: int = 1000
    callers: int = 1024
    """Callers with a rate of their own; the least recently seen is dropped."""


class Rate:
    """A token bucket for each caller.

    >>> rate = Rate(Bounds(requests_per_s=2.0, burst_requests=1))
    >>> rate.wait_s("10.0.0.1", 0.0), rate.wait_s("10.0.0.1", 0.0), rate.wait_s("10.0.0.1", 0.5)
    (0.0, 0.5, 0.0)
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, now_s: float) -> float:
        """Seconds to wait before the next request; 0 admits and counts a request."""
        bounds = self._bounds
        left, seen_s = self._buckets.pop(caller, (float(bounds.burst_requests), now_s))
        left = min(bounds.burst_requests, left + max(0.0, now_s - seen_s) * bounds.requests_per_s)
        wait_s = 0.0 if left >= 1.0 else (1.0 - left) / bounds.requests_per_s
        self._buckets[caller] = (left - (wait_s == 0.0), now_s)
        if len(self._buckets) > bounds.callers:
            self._buckets.popitem(last=False)
        return wait_s


class BoundedRequests:
    """Refuses large bodies with 413, frequent requests with 429, and web pages of other origins with 403."""

    def __init__(self, app: ASGIApp, *, bounds: Bounds, clock: Callable[[], float]) -> None:
        self._app = app
        self._bounds = bounds
        self._rate = Rate(bounds)
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
        wait_s = self._rate.wait_s(caller_of(scope), self._clock())
        if wait_s > 0.0:
            error = f"more than {self._bounds.requests_per_s:g} requests a second"
            return _refused(429, error, f"try again in {math.ceil(wait_s)} s", {"Retry-After": str(math.ceil(wait_s))})
        if is_foreign(headers.get("origin"), headers.get("host", "")):
            return _refused(403, "a web page of another address asks", "use the dashboard, or a client that is no page")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self._bounds.body_bytes:
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


def caller_of(scope: Scope) -> str:
    """The caller's address; for IPv6 its /64, which one machine may own entirely.

    >>> caller_of({"client": ("2001:db8::1:2:3:4", 5)})
    '2001:db8::'
    """
    client = scope.get("client")
    if not client:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return str(client[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)).network_address)


def is_foreign(origin: str | None, host: str) -> bool:
    """Whether a browser sends the request for a page of another origin.

    >>> is_foreign("https://evil.example", "127.0.0.1:8700"), is_foreign("http://127.0.0.1:8700", "127.0.0.1:8700")
    (True, False)
    >>> is_foreign("null", "127.0.0.1:8700"), is_foreign(None, "127.0.0.1:8700")
    (True, False)
    """
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        return True


def _refused(status: int, error: str, remedy: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error, "remedy": remedy}, status_code=status, headers=headers)


def _with_safe_headers(send: Send) -> Send:
    async def answered(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(SAFE_HEADERS)
        await send(message)

    return answered
