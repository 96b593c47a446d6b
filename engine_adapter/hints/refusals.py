"""The answers to requests that are refused before vLLM serves them, or that were ended before they were served."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine_adapter.hints.values import UnusableHintError

DROPPED_REASON = b"x-llm-d-request-dropped-reason"
"""Header of llm-d's router for the reason why a request was dropped, with the values that are used there."""

RETRY_AFTER_S = 1
"""When a client may try again; most SDKs wait for it by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error as vLLM, OpenAI and Anthropic state it."""

    status: int
    message: str
    kind: str
    """``type`` in OpenAI's form."""
    anthropic_kind: str
    parameter: str | None = None
    dropped: bytes | None = None
    """Value of `DROPPED_REASON`; None where the request itself is wrong."""

    def answer(self, *, anthropic: bool) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return headers and body."""
        if anthropic:
            told: object = {"type": "error", "error": {"type": self.anthropic_kind, "message": self.message}}
        else:
            fields = {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.status}
            told = {"error": fields}
        body = msgspec.json.encode(told)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if self.dropped is not None:
            headers += [(DROPPED_REASON, self.dropped), (b"retry-after", b"%d" % RETRY_AFTER_S)]
        return headers, body


def unusable(error: UnusableHintError) -> Refusal:
    """Return the refusal of a header or field that cannot be used."""
    return Refusal(
        status=400,
        message=str(error),
        kind="BadRequestError",
        anthropic_kind="invalid_request_error",
        parameter=error.source.split()[-1],
    )


def too_many(tenant: str | None, most: int) -> Refusal:
    """Return the refusal of a request of a tenant that has as many unfinished ones as it may have."""
    of_whom = "requests without a tenant" if tenant is None else f"tenant {tenant!r}"
    return Refusal(
        status=429,
        message=f"{of_whom} may have {most} unfinished at once, and has: try again when one has ended",
        kind="RateLimitError",
        anthropic_kind="rate_limit_error",
        dropped=b"rejected-saturated",
    )


def shed(reason: str) -> Refusal:
    """Return the answer to a request that was ended because its targets could no longer be met."""
    return Refusal(
        status=429,
        message=reason,
        kind="RateLimitError",
        anthropic_kind="rate_limit_error",
        dropped=b"rejected-ttl-expired",
    )
