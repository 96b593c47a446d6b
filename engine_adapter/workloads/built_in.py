"""Built-in workloads that put a scheduler to one kind of test: shared prefixes, long prompts, sessions.

They have no texts, and the same seed gives the same rows. Lengths are those that public traces and reports show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TypeAlias

import numpy as np

from engine_adapter.workloads.beside_others import batch_interactive, tenants, tenants_backlog
from engine_adapter.workloads.length_distributions import Lengths, LogNormal
from engine_adapter.workloads.rows import WorkloadRow
from engine_adapter.workloads.token_ids import PREFIX_BLOCK_TOKENS

Rows: TypeAlias = Callable[[int, int, int], tuple[WorkloadRow, ...]]
"""Makes the rows of a workload from the numbers of warm-up and of measured requests and a seed."""

SESSIONS = 48
"""Number of clients of ``sessions`` that work at the same time."""

FIRST_PROMPT_TOKENS, NEW_TOKENS, CALL_ANSWER_TOKENS = 10_000, 300, 44
"""Tokens of a session's first prompt, of what each further call adds to it, and of an answer in the median."""

TOOL_S, TOOL_SIGMA = 1.0, 1.0
"""Median seconds between an answer's end and the session's next call, and the deviation of their logarithm."""

LONG_PROMPT_TOKENS, LONG_PROMPT_EVERY_S = 120_000, 60.0

_CHAT_TOKENS: Lengths = LogNormal(median_tokens=300, sigma=0.5)
_ANSWER_TOKENS: Lengths = LogNormal(median_tokens=150, sigma=0.85)
_SHORT_ANSWER_TOKENS: Lengths = LogNormal(median_tokens=120, sigma=0.7)
_CALL_TOKENS: Lengths = LogNormal(median_tokens=CALL_ANSWER_TOKENS, sigma=0.3)
_MAX_TAIL_TOKENS, _MAX_ANSWER_TOKENS = 2_000, 3_000
_MODEL = "synthetic"


def _prefixes(*, prefixes: int, tokens: int) -> Rows:
    """Requests that begin with one of a few prompts, as those of a few applications do."""

    def rows(warmup: int, requests: int, seed: int) -> tuple[WorkloadRow, ...]:
        count, generator = warmup + requests, np.random.default_rng([seed, 6])
        chosen = generator.integers(prefixes, size=count).tolist()
        tails = np.minimum(_CHAT_TOKENS.draw(generator, count), _MAX_TAIL_TOKENS).tolist()
        answers = np.minimum(_ANSWER_TOKENS.draw(generator, count), _MAX_ANSWER_TOKENS).tolist()
        blocks = tokens // PREFIX_BLOCK_TOKENS
        first_tail = prefixes * blocks
        return tuple(
            WorkloadRow(
                task=f"application-{prefix + 1}",
                model=_MODEL,
                prompt=None,
                prompt_len_tokens=tokens + tail,
                response_len_tokens=answer,
                block_hashes=(*range(prefix * blocks, (prefix + 1) * blocks), first_tail + number),
            )
            for number, (prefix, tail, answer) in enumerate(zip(chosen, tails, answers, strict=True))
        )

    return rows


def _long_prompts(warmup: int, requests: int, seed: int) -> tuple[WorkloadRow, ...]:
    """Each second a short request on average, and each minute a prompt of `LONG_PROMPT_TOKENS`."""
    return tuple(islice(_long_among_short(np.random.default_rng([seed, 7])), warmup + requests))


def _long_among_short(generator: np.random.Generator) -> Iterator[WorkloadRow]:
    now_s, long_s = 0.0, LONG_PROMPT_EVERY_S / 2
    while True:
        now_s += float(generator.exponential(1.0))
        while long_s <= now_s:
            yield _row("document", LONG_PROMPT_TOKENS, 100, long_s)
            long_s += LONG_PROMPT_EVERY_S
        prompt = min(_MAX_TAIL_TOKENS - 1, int(_CHAT_TOKENS.draw(generator, 1)[0]))
        answer = min(_MAX_ANSWER_TOKENS, int(_SHORT_ANSWER_TOKENS.draw(generator, 1)[0]))
        yield _row("chat", prompt, answer, now_s)


def _sessions(warmup: int, requests: int, seed: int) -> tuple[WorkloadRow, ...]:
    """`SESSIONS` clients that call again and again, each with its whole conversation so far, once a tool has answered.

    The warm-up has calls from anywhere in other sessions, each with its whole prompt.
    """
    generator = np.random.default_rng([seed, 8])
    return tuple(chain(_former_calls(warmup, generator), _calls(warmup, requests, generator)))


def _former_calls(count: int, generator: np.random.Generator) -> Iterator[WorkloadRow]:
    calls = generator.integers(40, size=count)
    prompts = (FIRST_PROMPT_TOKENS + calls * (NEW_TOKENS + CALL_ANSWER_TOKENS)).tolist()
    for prompt, answer in zip(prompts, _CALL_TOKENS.draw(generator, count).tolist(), strict=True):
        yield _row("agent", prompt, answer, 0.0)


def _calls(first: int, count: int, generator: np.random.Generator) -> Iterator[WorkloadRow]:
    """The calls of all sessions, the first of each before the second of any."""
    starts_s = sorted(generator.uniform(0.0, 30.0, SESSIONS).tolist())
    answers = _CALL_TOKENS.draw(generator, count).tolist()
    pauses_s = (TOOL_S * np.exp(TOOL_SIGMA * generator.standard_normal(count))).tolist()
    for number in range(count):
        session = number % SESSIONS
        opens = number < SESSIONS
        yield WorkloadRow(
            task="agent",
            model=_MODEL,
            prompt=None,
            prompt_len_tokens=FIRST_PROMPT_TOKENS if opens else NEW_TOKENS,
            response_len_tokens=answers[number],
            arrival_s=starts_s[session] if opens else starts_s[-1],
            client=f"session-{session + 1}",
            session=f"session-{session + 1}",
            continues=None if opens else first + number - SESSIONS,
            pause_s=0.0 if opens else pauses_s[number],
        )


def _row(task: str, prompt_tokens: int, answer_tokens: int, arrival_s: float) -> WorkloadRow:
    return WorkloadRow(
        task=task,
        model=_MODEL,
        prompt=None,
        prompt_len_tokens=prompt_tokens,
        response_len_tokens=answer_tokens,
        arrival_s=arrival_s,
    )


BUILT_IN: dict[str, Rows] = {
    "prefix-8k": _prefixes(prefixes=1, tokens=8_192),
    "prefix-4k-two": _prefixes(prefixes=2, tokens=4_096),
    "long-prompts": _long_prompts,
    "sessions": _sessions,
    "tenants": tenants,
    "tenants-backlog": tenants_backlog,
    "batch-interactive": batch_interactive,
}
"""Names of built-in workloads without texts.

``prefix-8k``: all requests share their first 8,192 tokens; about 300 follow, answers have about 150.
``prefix-4k-two``: the same with one of two prefixes of 4,096 tokens.
``long-prompts``: a short request a second and a prompt of 120,000 tokens each minute; needs a context of 131,072 tokens.
``sessions``: 48 clients in a closed loop; a call's prompt is the former one, its answer and 300 new tokens.
``tenants``: a request a second of a small tenant, first alone and then beside a large one with 40 long jobs in flight.
``tenants-backlog``: two tenants with 40 jobs in flight each, of very different sizes.
``batch-interactive``: a batch of priority 10 at the start and a request a second of priority 0.
"""
