"""What the middleware costs a request: ``python docs/hints_cost.py`` prints milliseconds, median of many.

It drives `engine_adapter.http_hints.HttpHints` as a server does, in parts of 64 KiB, and subtracts what the same
application costs without it. Beside it stands what reading the same body as JSON costs, which vLLM does for each request.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from statistics import median

from engine_adapter.http_hints import App, HttpHints, Message, Receive, Send

PART_BYTES = 1 << 16
HEADERS = [
    (b"host", b"localhost:8000"),
    (b"content-type", b"application/json"),
    (b"authorization", b"Bearer key"),
    (b"user-agent", b"OpenAI/Python 2.8.1"),
    (b"accept", b"application/json"),
    (b"x-request-id", b"7d3c"),
    (b"content-length", b"1"),
]
HINTS = [
    (b"x-llm-d-slo-ttft-ms", b"2000"),
    (b"x-llm-d-slo-tpot-ms", b"50"),
    (b"x-llm-d-inference-fairness-id", b"team-a"),
    (b"x-session-id", b"session-1"),
]


def main() -> None:
    """Measure every body with and without hints."""
    sys.stdout.write(f"{'body':16} {'bytes':>9} {'nothing said':>13} {'four headers':>13} {'json.loads':>11}\n")
    for kind, make in (("chat, text", chat), ("token ids", token_ids)):
        for size in (1_000, 10_000, 100_000, 1_000_000):
            body = make(size)
            count = max(30, min(2000, 20_000_000 // size))
            bare_ms = cost_ms(application, body, HEADERS, count)
            silent_ms = cost_ms(HttpHints(application), body, HEADERS, count) - bare_ms
            hinted_ms = cost_ms(HttpHints(application), body, HEADERS + HINTS, count) - bare_ms
            figures = f"{silent_ms:13.3f} {hinted_ms:13.3f} {json_ms(body, count):11.3f}"
            sys.stdout.write(f"{kind:16} {len(body):9} {figures}\n")


async def application(_scope: Message, receive: Receive, send: Send) -> None:
    """Read the body and answer with nothing."""
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def cost_ms(app: App, body: bytes, headers: list[tuple[bytes, bytes]], count: int) -> float:
    """Median milliseconds of a request."""
    return asyncio.run(_cost_ms(app, body, headers, count))


async def _cost_ms(app: App, body: bytes, headers: list[tuple[bytes, bytes]], count: int) -> float:
    parts = [body[start : start + PART_BYTES] for start in range(0, len(body), PART_BYTES)]
    scope: Message = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    took_s = []
    for _ in range(count):
        coming = iter(enumerate(parts, 1))

        async def receive() -> Message:
            number, part = next(coming)  # noqa: B023 - used before the next one is made
            return {"type": "http.request", "body": part, "more_body": number < len(parts)}

        async def send(_message: Message) -> None:
            pass

        started_s = time.perf_counter()
        await app(scope, receive, send)
        took_s.append(time.perf_counter() - started_s)
    return 1e3 * median(took_s)


def json_ms(body: bytes, count: int) -> float:
    """Median milliseconds of reading a body with the standard library."""
    took_s = []
    for _ in range(count):
        started_s = time.perf_counter()
        json.loads(body)
        took_s.append(time.perf_counter() - started_s)
    return 1e3 * median(took_s)


def chat(size: int) -> bytes:
    """A chat whose one message has so many bytes."""
    content = "One word after another, line by line.\n" * (size // 39)
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], "stream": True}).encode()


def token_ids(size: int) -> bytes:
    """A prompt of token ids with about so many bytes."""
    return json.dumps({"model": "m", "prompt": [7919 * number % 151_936 for number in range(size // 8)]}).encode()


if __name__ == "__main__":
    main()
