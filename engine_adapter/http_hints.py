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

from engine_adapter.hints.body import BodyHints, HintedBody, json_object
from engine_adapter.hints.counted import DROPPED, IGNORED, Counted
from engine_adapter.hints.headers import SERVICE_TIER, VLLM_PRIORITY, HeaderHints, Headers
from engine_adapter.hints.refusals import Refusal, shed, too_many, unusable
from engine_adapter.hints.settings import Settings, read_settings
from engine_adapter.hints.tenant_limits import TenantLimits
from engine_adapter.hints.values import Complain, UnusableHintError

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
PATHS = frozenset({"/v1/completions", "/v1/chat/completions", RESPONSES, MESSAGES, "/invocations"})
"""Where vLLM generates for a JSON body with ``vllm_xargs``."""

MAX_BODY_BYTES = 64 << 20
"""A longer body passes as it comes, unless API keys name tenants."""

SHED = "shed: "
"""How the ``stop_reason`` of a choice begins that was ended because its targets could no longer be met."""

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
        self._ignored = Counted(IGNORED, "ignored", time.monotonic)
        self._dropped = Counted(DROPPED, "answered by 429", time.monotonic)
        self._complain: Complain = self._ignore if settings.unusable == "ignore" else _refuse
        self._bodies = BodyHints(settings.tiers, self._complain, settings.belongs_to_a_key)
        self._limits = TenantLimits(settings.max_requests_per_tenant, settings.tenant_max_requests)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, in ASGI's words."""
        if not _generates(scope):
            return await self._app(scope, receive, send)
        try:
            hints = HeaderHints(scope["headers"], self._complain)
        except UnusableHintError as error:
            return await _refuse_with(unusable(error), send, scope)
        exchange = _Exchange(scope, receive, send, hints, self)
        try:
            return await self._app(exchange.scope, exchange.receive, exchange.send)
        finally:
            exchange.leave()

    def write(self, body: bytes, hints: HeaderHints, authorization: bytes) -> HintedBody:
        """Return the body as vLLM gets it, and what the answer depends on; raises `UnusableHintError`."""
        key_tenant = self._settings.tenant_of(authorization)
        written = self._bodies.write(body, hints.fields, key_tenant)
        return self.lose(body, hints, "a JSON object") if written is None else written

    def lose(self, body: bytes, hints: HeaderHints, allowed: str) -> HintedBody:
        """Count a body into which what the headers say cannot be written: vLLM gets it as it is.

        Raises `UnusableHintError` where keys name tenants: vLLM reads more than we do, such as NaN and UTF-16, and such a
        body could name the tenant of another's key.
        """
        error = UnusableHintError("body", "something else", allowed)
        if self._settings.keys_name_tenants:
            raise error
        if hints.fields:
            self._ignore(error)
        tenant = hints.fields.get("tenant")
        return HintedBody(body, tenant=None if tenant is None else str(tenant))

    def enter(self, tenant: str | None, *, background: bool) -> Refusal | None:
        """Count one more unfinished request of a tenant; returns the refusal, and counts nothing, at its limit.

        One whose answer is made in the background is refused where there is a limit: its exchange ends before.
        """
        if background and self._limits.most(tenant) is not None:
            return unusable(UnusableHintError("field background", "true", "false, for unfinished requests are limited"))
        most = self._limits.enter(tenant)
        return None if most is None else self.drop("tenant_limit", too_many(tenant, most))

    def leave(self, tenant: str | None) -> None:
        """Count a request that was entered as finished."""
        self._limits.leave(tenant)

    def drop(self, reason: str, refusal: Refusal) -> Refusal:
        """Count a request that is answered by 429."""
        self._dropped.count(reason, refusal.message)
        return refusal

    def _ignore(self, error: UnusableHintError) -> None:
        self._ignored.count(error.source, error)


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
        self._refusal: Refusal | None = None
        self._refused = False
        self._entered = False
        self._said = HintedBody(b"")
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
        body = self._write(b"".join(parts), fits=size <= MAX_BODY_BYTES)
        self._enter()
        return {"type": "http.request", "body": b"" if self._refusal else body, "more_body": more}

    def leave(self) -> None:
        """End the exchange, however it ended."""
        if self._entered:
            self._entered = False
            self._server.leave(self._said.tenant)

    def _write(self, body: bytes, *, fits: bool) -> bytes:
        key, server = self._header(b"authorization"), self._server
        try:
            if fits:
                said = server.write(body, self._hints, key)
            else:
                said = server.lose(body, self._hints, f"at most {MAX_BODY_BYTES} bytes")
        except UnusableHintError as error:
            self._refusal = unusable(error)
            return body
        self._said = said._replace(body=b"")
        if said.body is not body:
            _set_length(self.scope["headers"], len(said.body))
        return said.body

    def _enter(self) -> None:
        """Count the request; the application answers an empty body, in whose place a refusal goes out."""
        if self._refusal is None:
            background = self._said.background and _path(self.scope) == RESPONSES
            self._refusal = self._server.enter(self._said.tenant, background=background)
            self._entered = self._refusal is None

    async def send(self, message: Message) -> None:
        """Pass on the answer, with the tier where one was named; a refusal goes out in its place."""
        if self._refusal is not None:
            if not self._refused:
                self._refused = True
                await _refuse_with(self._refusal, self._send, self.scope)
        elif self._held is not None and message["type"] == "http.response.body":
            await self._send_whole(self._held, message)
        elif message["type"] == "http.response.start":
            await self._start(message)
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        """Name the tier in the header, and hold back an answer in whose body something may have to be changed."""
        tier = self._said.tier
        if tier is not None:
            headers = [*message.get("headers", ()), (SERVICE_TIER, tier.encode("latin-1", "replace"))]
            message = {**message, "headers": headers}
        if (tier is not None or self._said.sheds) and self._has_place(message):
            self._held = message
        else:
            await self._send(message)

    async def _send_whole(self, start: Message, message: Message) -> None:
        """Send an answer that was held back once all of it is there."""
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body, tier = b"".join(self._parts), self._said.tier
        if self._said.sheds and (reason := _shed_reason(body)):
            refusal = self._server.drop("shed", shed(reason))
            await _refuse_with(refusal, self._send, self.scope)
            return
        if tier is not None:
            body = _name_tier(body, tier)
            _set_length(start["headers"], len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    def _has_place(self, start: Message) -> bool:
        """Whether the answer is JSON that can say more in a field; a stream, and an error, cannot."""
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


class _Choice(msgspec.Struct):
    stop_reason: str | int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


def _shed_reason(body: bytes) -> str | None:
    """Return why every choice of an answer was ended before it was served; None if one was served."""
    try:
        reasons = {choice.stop_reason for choice in msgspec.json.decode(body, type=_Answer).choices}
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    reason = reasons.pop() if len(reasons) == 1 else None
    return reason if isinstance(reason, str) and reason.startswith(SHED) else None


def _refuse(error: UnusableHintError) -> None:
    raise error


async def _refuse_with(refusal: Refusal, send: Send, scope: Message) -> None:
    """Answer in the form in which vLLM answers an error there."""
    headers, body = refusal.answer(anthropic=scope["path"].endswith(MESSAGES))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
