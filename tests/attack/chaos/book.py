"""The requests that clients send, hostile and harmless ones, and what stock vLLM answers to each of them."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from engine_adapter.serving.tiny_model import VOCABULARY_TOKENS
from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer

PATIENCE_S = 300.0
ODD_TEXTS = (
    "",
    " ",
    "../../etc/passwd",
    "'; DROP TABLE requests; --",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "\x1b]0;owned\x07",
    "\r\nX-Injected: 1",
    "\u202eright to left",
    "\U0001f9e8" * 40,
    "%00%2e%2e",
    "NaN",
    "tenant" * 300,
    "*|`$(id)`[a](b)",
)
"""Names that somebody could give a request or a tenant."""
EXTREMES = (-(2**63), -(2**31), -1, 0, 0, 0, 1, 2**31, 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of an answer, as a client sees it."""

    token_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What stock vLLM answers: the status, and the choices if it is 200."""

    status: int
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A request and the answer that it must get."""

    body: dict[str, Any] | bytes
    """JSON, or bytes that are none."""
    name: str
    """What the client calls the request, behind a part that makes it unique."""
    headers: dict[str, str] = field(default_factory=dict)
    answer: Answer = field(default=Answer(0))

    @property
    def streamed(self) -> bool:
        """Whether the client reads it piece by piece."""
        return isinstance(self.body, dict) and self.body.get("stream") is True

    def content(self, tag: str) -> bytes | dict[str, Any]:
        """The body of one request, whose id begins with ``tag``."""
        return self.body if isinstance(self.body, bytes) else {**self.body, "request_id": f"{tag}!{self.name}"}


def write_book(chance: random.Random, pages: int) -> list[Page]:
    """Draw so many requests; four in five are served, the others are to be refused."""
    return [_bad(chance) if chance.random() < 0.2 else _good(chance) for _ in range(pages)]


def _good(chance: random.Random) -> Page:
    body = _plain(chance)
    chance.choice((_as_is, _as_is, _streamed, _streamed, _parallel, _many_prompts, _stopped, _endless, _long))(
        body, chance
    )
    tenant = chance.choice((None, "acme", "globex", chance.choice(ODD_TEXTS)))
    if tenant is not None:
        body["vllm_xargs"]["tenant"] = tenant
    header = chance.choice((None, None, None, None, 2**64 - 1, 10**400, "-0x1"))
    return Page(body, chance.choice(ODD_TEXTS), {} if header is None else {"X-Vllm-Priority": str(header)})


def _plain(chance: random.Random) -> dict[str, Any]:
    return {
        "model": MODEL_NAME,
        "prompt": _prompt(chance, chance.randint(1, 80)),
        "max_tokens": chance.randint(1, 120),
        "temperature": chance.choice((0, 0.7, 1.0, 2.0)),
        "priority": chance.choice(EXTREMES),
        "return_token_ids": True,
        "vllm_xargs": {"true_len": str(round(chance.lognormvariate(3.2, 0.8)) + 1)},
    }


def _prompt(chance: random.Random, tokens: int) -> list[int]:
    return [chance.randrange(16, VOCABULARY_TOKENS) for _ in range(tokens)]


def _as_is(_body: dict[str, Any], _chance: random.Random) -> None:
    """One answer, read when it is complete."""


def _streamed(body: dict[str, Any], _chance: random.Random) -> None:
    body["stream"] = True


def _parallel(body: dict[str, Any], chance: random.Random) -> None:
    """Parallel sampling: each choice is a request of its own in the engine."""
    body["n"] = chance.randint(2, 4)
    body["temperature"] = 1.0


def _many_prompts(body: dict[str, Any], chance: random.Random) -> None:
    body["prompt"] = [_prompt(chance, chance.randint(1, 30)) for _ in range(chance.randint(2, 4))]


def _stopped(body: dict[str, Any], chance: random.Random) -> None:
    """Stopped by one of a quarter of all tokens."""
    body["stop_token_ids"] = chance.sample(range(16, VOCABULARY_TOKENS), VOCABULARY_TOKENS // 16)


def _endless(body: dict[str, Any], _chance: random.Random) -> None:
    body["ignore_eos"] = True


def _long(body: dict[str, Any], chance: random.Random) -> None:
    body["prompt"] = _prompt(chance, chance.randint(1_000, 6_000))


def _bad(chance: random.Random) -> Page:
    spoilt = chance.choice(_BAD)
    return Page(spoilt if isinstance(spoilt, bytes) else {**_plain(chance), **spoilt}, chance.choice(ODD_TEXTS))


_BAD: tuple[dict[str, Any] | bytes, ...] = (
    b'{"model": "tiny", "prompt": "a", "max_tokens": 3',
    b'{"model": "tiny", "prompt": "a", "max_tokens": 3, "temperature": NaN}',
    b"\xff\xfe\x00",
    b"[" * 50_000,
    {"max_tokens": -1},
    {"max_tokens": 2**62},
    {"n": 0},
    {"priority": 2**70},
    {"temperature": -1},
    {"prompt": []},
    {"prompt": [1] * 20_000},
    {"prompt": [-5, 2**40]},
    {"model": "../tiny"},
    {"vllm_xargs": {"tenant": {"deep": [{}]}}},
    {"stop_token_ids": ["a"]},
    {"min_tokens": 500},
)
"""What is sent in a sound body's place, or what spoils it."""


def answered_by_stock(book: list[Page], server: VllmServer, clients: int) -> list[Page]:
    """The same book with what a server without our plugin answers."""
    with httpx.Client(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=clients)) as http:

        def answered(numbered: tuple[int, Page]) -> Page:
            number, page = numbered
            whole = replace(page, body=_not_streamed(page.body))
            answer = read_answer(post(http, server.base_url, whole.content(f"book-{number}"), page.headers))
            return replace(page if answer.status == httpx.codes.OK else whole, answer=answer)

        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(answered, enumerate(book)))


def _not_streamed(body: dict[str, Any] | bytes) -> dict[str, Any] | bytes:
    return body if isinstance(body, bytes) else {name: value for name, value in body.items() if name != "stream"}


def post(http: httpx.Client, base_url: str, body: bytes | dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    """Send one completion request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    return http.post(f"{base_url}/v1/completions", content=content, headers=headers)


def read_answer(response: httpx.Response) -> Answer:
    """What an answer says that is not streamed."""
    if response.status_code != httpx.codes.OK:
        return Answer(response.status_code)
    choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    return Answer(200, tuple(Choice(tuple(choice["token_ids"]), choice["finish_reason"]) for choice in choices))
