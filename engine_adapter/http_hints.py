"""Lets a request say what it needs, for ``vllm serve --middleware engine_adapter.http_hints.HttpHints``.

vLLM's scheduler sees of a request its priority, its session and ``vllm_xargs``, and no header.
This ASGI class reads the headers and body fields that gateways, SDKs and agents send, checks them, and writes what they
say into ``vllm_xargs`` before vLLM reads the body; docs/service_levels.md has the table.
It runs in vLLM's API server. Requests that say nothing, and all other traffic, pass as they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec

from engine_adapter.hints.body import BodyHints, json_object
from engine_adapter.hints.headers import SERVICE_TIER, VLLM_PRIORITY, HeaderHints, Headers
from engine_adapter.hints.ignored import IgnoredHints
from engine_adapter.hints.settings import Settings, read_settings
from engine_adapter.hints.values import Complain, UnusableHintError

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

MESSAGES = "/v1/messages"
PATHS = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/responses", MESSAGES})
"""Where vLLM generates for a JSON body with ``vllm_xargs``."""

MAX_BODY_BYTES = 64 << 20
"""A longer body passes as it comes."""

SETTINGS = read_settings(os.environ)
"""Read when vLLM imports the class, so that a wrong setting stops the start and not each request."""


class HttpHints:
    """The middleware.

    Args:
        app: The application behind it.
        settings: The operator's settings; those of the environment unless given.
    """

    def __init__(self, app: App, settings: Settings = SETTINGS) -> None:
        self._app = app
        self._settings = settings
        self._ignored = IgnoredHints(time.monotonic)
        self._complain: Complain = self._ignored.count if settings.unusable == "ignore" else _refuse
        self._bodies = BodyHints(settings.tiers, self._complain)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, in ASGI's words."""
        if not _generates(scope):
            return await self._app(scope, receive, send)
        try:
            hints = HeaderHints(scope["headers"], self._complain)
        except UnusableHintError as error:
            return await _answer_400(send, error, scope["path"])
        exchange = _Exchange(scope, receive, send, hints, self)
        return await self._app(exchange.scope, exchange.receive, exchange.send)

    def write(self, body: bytes, hints: HeaderHints, authorization: bytes) -> tuple[bytes, str | None]:
        """Return the body as vLLM gets it, and the tier to name in the answer; raises `UnusableHintError`."""
        written = self._bodies.write(body, hints.fields, self._settings.tenant_of(authorization))
        if written is None:
            self.lose(hints, "a JSON object")
            return body, None
        return written

    def lose(self, hints: HeaderHints, allowed: str) -> None:
        """Count a body into which what the headers say cannot be written: vLLM gets it as it is."""
        if hints.fields:
            self._ignored.count(UnusableHintError("body", "something else", allowed))


class _Exchange:
    """One request and its answer.

    The body is read when the application asks for it, so that vLLM refuses who has no key before anything is kept.
    """

    def __init__(self, scope: Message, receive: Receive, send: Send, hints: HeaderHints, server: HttpHints) -> None:
        self.scope = {**scope, "headers": _with_priority(scope["headers"], hints)}
        self._receive = receive
        self._send = send
        self._hints = hints
        self._server = server
        self._read = False
        self._refusal: UnusableHintError | None = None
        self._refused = False
        self._tier: str | None = None
        self._held: Message | None = None
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        """Return the whole body, as written anew, then whatever comes: what does not fit comes in parts."""
        if self._read:
            return await self._receive()
        self._read = True
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= MAX_BODY_BYTES:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        body = b"".join(parts)
        if size > MAX_BODY_BYTES:
            self._server.lose(self._hints, f"at most {MAX_BODY_BYTES} bytes")
        else:
            body = self._write(body)
        return {"type": "http.request", "body": body, "more_body": more}

    def _write(self, body: bytes) -> bytes:
        try:
            written, self._tier = self._server.write(body, self._hints, self._header(b"authorization"))
        except UnusableHintError as error:
            self._refusal = error
            return b""  # The application answers something, in whose place the refusal goes out.
        if written is not body:
            _set_length(self.scope["headers"], len(written))
        return written

    async def send(self, message: Message) -> None:
        """Pass on the answer, with the tier where one was named; a refusal goes out in its place."""
        if self._refusal is not None:
            if not self._refused:
                self._refused = True
                await _answer_400(self._send, self._refusal, self.scope["path"])
        elif self._tier is None:
            await self._send(message)
        else:
            await self._send_with_tier(message, self._tier)

    async def _send_with_tier(self, message: Message, tier: str) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (SERVICE_TIER, tier.encode("latin-1", "replace"))]
            message = {**message, "headers": headers}
            if self._has_place(message):
                self._held = message
                return
        if self._held is None or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            body = _name_tier(b"".join(self._parts), tier)
            _set_length(self._held["headers"], len(body))
            await self._send(self._held)
            await self._send({"type": "http.response.body", "body": body})

    def _has_place(self, start: Message) -> bool:
        """Whether the answer is JSON that has the tier in a field; a stream, and an error, have it in the header alone."""
        kind = next((value for name, value in start["headers"] if name.lower() == b"content-type"), b"")
        return start["status"] == 200 and kind.startswith(b"application/json") and _path(self.scope) != MESSAGES

    def _header(self, name: bytes) -> bytes:
        return next((value for known, value in self.scope["headers"] if known == name), b"")


def _generates(scope: Message) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and _path(scope) in PATHS


def _path(scope: Message) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _with_priority(headers: Headers, hints: HeaderHints) -> list[tuple[bytes, bytes]]:
    """Return the headers, with vLLM's own for a priority that only Dynamo's header states."""
    if hints.priority is None:
        return list(headers)
    return [*(header for header in headers if header[0] != VLLM_PRIORITY), (VLLM_PRIORITY, b"%d" % hints.priority)]


def _set_length(headers: list[tuple[bytes, bytes]], length: int) -> None:
    """Set the length where one is stated."""
    headers[:] = [(n, b"%d" % length if n.lower() == b"content-length" else value) for n, value in headers]


def _name_tier(body: bytes, tier: str) -> bytes:
    fields = json_object(body)
    return body if fields is None else msgspec.json.encode({**fields, "service_tier": tier})


def _refuse(error: UnusableHintError) -> None:
    raise error


async def _answer_400(send: Send, error: UnusableHintError, path: str) -> None:
    """Answer in the form in which vLLM answers a bad request there."""
    text = str(error)
    if path.endswith(MESSAGES):
        answer = {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    else:
        told = {"message": text, "type": "BadRequestError", "param": error.source.split()[-1], "code": 400}
        answer = {"error": told}
    body = msgspec.json.encode(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
