"""The clients: each always has a request under way, and writes down what it saw of every answer."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

import httpx

from chaos.book import EXTREMES, PATIENCE_S, Answer, Choice, Page, post, read_answer

Outcome: TypeAlias = Literal["answered", "left", "failed"]
LEAVES = 0.12
"""Share of the streams whose client goes away before the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a client saw of one request; moments are of the tester's own steady clock."""

    tag: str
    """What the request's id begins with."""
    page: Page
    outcome: Outcome
    """Read to the end, left by the client, or not answered as HTTP at all."""
    answer: Answer
    sent_s: float
    ended_s: float
    first_s: float | None = None
    """When the first piece of a stream came."""
    text: str = ""
    """What went wrong."""

    @property
    def served(self) -> bool:
        """Whether the engine must have computed the whole answer."""
        return self.outcome == "answered" and self.answer.status == httpx.codes.OK


@dataclass(slots=True)
class Ledger:
    """All lines, in the order in which the requests ended."""

    lines: list[Line] = field(default_factory=list)

    def since(self, start: int) -> list[Line]:
        """The lines from a number on."""
        return self.lines[start:]


class ClientPool:
    """Clients in threads; what each asks for, and when it goes away, follows from the seed."""

    def __init__(self, base_url: str, book: list[Page], *, clients: int, seed: int) -> None:
        self.ledger = Ledger()
        self._base_url = base_url
        self._book = book
        self._seed = seed
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(clients, thread_name_prefix="client")
        self._clients: list[Future[None]] = []
        self._count = clients
        self._extra = itertools.count()

    def __enter__(self) -> Self:
        self._clients = [self._pool.submit(self._run, number) for number in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each client end its last request."""
        self._ending.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def send_once(self, http: httpx.Client, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Line:
        """Send a harmless request, before all others, changed in a way that must not change its answer."""
        number = next(self._extra)
        pages = [
            page
            for page in self._book
            if page.answer.status == httpx.codes.OK and not page.streamed and not page.headers
        ]
        page, tag = pages[number % len(pages)], f"x{self._seed}-{number}"
        body = page.content(tag)
        assert isinstance(body, dict)
        return self._noted(self._read_whole(http, page, tag, change({**body, "priority": EXTREMES[0]})))

    def _run(self, client: int) -> None:
        chance = random.Random(f"{self._seed}/{client}")
        with httpx.Client(timeout=PATIENCE_S) as http:
            for number in itertools.count():
                if self._ending.is_set():
                    return
                page, tag = chance.choice(self._book), f"a{self._seed}-{client}-{number}"
                read = self._read_stream if page.streamed else self._read_whole
                leaves_after = chance.randint(1, 30) if chance.random() < LEAVES else None
                if self._noted(read(http, page, tag, page.content(tag), leaves_after)).outcome == "failed":
                    self._ending.wait(1.0)

    def _noted(self, line: Line) -> Line:
        self.ledger.lines.append(line)
        return line

    def _read_whole(
        self, http: httpx.Client, page: Page, tag: str, body: Any, _leaves_after: int | None = None
    ) -> Line:
        sent_s = time.monotonic()
        try:
            answer, outcome, text = read_answer(post(http, self._base_url, body, page.headers)), "answered", ""
        except (httpx.HTTPError, ValueError, KeyError) as error:
            answer, outcome, text = Answer(0), "failed", f"{type(error).__name__}: {error}"
        return Line(
            tag=tag,
            page=page,
            outcome=outcome,  # type: ignore[arg-type]
            answer=answer,
            sent_s=sent_s,
            ended_s=time.monotonic(),
            text=text,
        )

    def _read_stream(self, http: httpx.Client, page: Page, tag: str, body: Any, leaves_after: int | None) -> Line:
        sent_s, first_s = time.monotonic(), None
        choices: dict[int, tuple[list[int], str]] = {}
        outcome: Outcome = "answered"
        text = ""
        try:
            with http.stream("POST", f"{self._base_url}/v1/completions", json=body, headers=page.headers) as response:
                status = response.status_code
                for pieces, piece in enumerate(_pieces(response)):
                    first_s = first_s or time.monotonic()
                    _add(choices, piece)
                    if pieces == leaves_after:
                        outcome = "left"
                        break
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome, status, text = "failed", 0, f"{type(error).__name__}: {error}"
        answer = Answer(status, tuple(Choice(tuple(ids), reason) for _, (ids, reason) in sorted(choices.items())))
        ended_s = time.monotonic()
        return Line(
            tag=tag,
            page=page,
            outcome=outcome,
            answer=answer,
            sent_s=sent_s,
            ended_s=ended_s,
            first_s=first_s,
            text=text,
        )


def _pieces(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            piece: dict[str, Any] = json.loads(line[6:])
            yield piece


def _add(choices: dict[int, tuple[list[int], str]], piece: dict[str, Any]) -> None:
    for choice in piece["choices"]:
        token_ids, reason = choices.get(choice["index"], ([], ""))
        token_ids.extend(choice["token_ids"] or ())
        choices[choice["index"]] = token_ids, choice["finish_reason"] or reason
