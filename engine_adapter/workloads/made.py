"""Workloads that anybody can make again: after the published statistics of traces, without a row of them.

Lengths are drawn from log-normal distributions with the median and the 95 % quantile that a source reports, arrivals from
gamma-distributed gaps with its rate and burstiness. No text, and nothing of a source beside these figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from engine_adapter.workloads.arrivals import gamma_arrivals
from engine_adapter.workloads.built_in import BUILT_IN
from engine_adapter.workloads.length_distributions import Lengths, LogNormal, Mixture, Pareto
from engine_adapter.workloads.rows import Workload, WorkloadRow
from engine_adapter.workloads.token_ids import PREFIX_BLOCK_TOKENS
from store.errors import BadInputError

Make: TypeAlias = Callable[[int, int], tuple[WorkloadRow, ...]]
"""Makes a number of rows from a seed."""

_Z95 = 1.6449
_MOST_TOKENS = 100_000
_TURNS = 6
"""Mean number of turns of a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of traffic."""

    about: str
    source: str
    """Where its statistics are published."""
    make: Make


def lengths(median: float, p95: float) -> LogNormal:
    """Log-normal lengths with this median and 95 % quantile.

    >>> drawn = lengths(100, 400).draw(np.random.default_rng(0), 100_000)
    >>> [round(float(np.quantile(drawn, q)), -1) for q in (0.5, 0.95)]
    [100.0, 400.0]
    """
    return LogNormal(median_tokens=median, sigma=math.log(p95 / median) / _Z95)


def made(kind: str, *, requests: int, seed: int) -> Workload:
    """Make a workload; the same arguments give the same rows.

    Raises:
        BadInputError: there is no such kind, or no request is wanted.

    >>> made("azure-conv", requests=2, seed=1) == made("azure-conv", requests=2, seed=1)
    True
    """
    if kind not in KINDS:
        raise BadInputError(f"unknown kind of workload {kind!r}: choose one of {', '.join(KINDS)}")
    if requests < 1:
        raise BadInputError(f"{requests} requests: give at least 1")
    return Workload(name=kind, rows=KINDS[kind].make(requests, seed))


def _trace(task: str, prompt: Lengths, answer: Lengths, *, rate_rps: float, cv: float, number: int) -> Make:
    """Independent requests at one rate."""

    def rows(count: int, seed: int) -> tuple[WorkloadRow, ...]:
        generator = np.random.default_rng([seed, number])
        arrivals_s = gamma_arrivals(generator, count=count, rate_rps=rate_rps, cv=cv)
        return tuple(_rows(generator, task, prompt, answer, arrivals_s.tolist()))

    return rows


def _rows(
    generator: np.random.Generator, task: str, prompt: Lengths, answer: Lengths, arrivals_s: list[float]
) -> Iterator[WorkloadRow]:
    prompts, answers = (
        np.minimum(lengths.draw(generator, len(arrivals_s)), _MOST_TOKENS).tolist() for lengths in (prompt, answer)
    )
    for arrival_s, prompt_tokens, answer_tokens in zip(arrivals_s, prompts, answers, strict=True):
        yield _row(task, prompt_tokens, answer_tokens, arrival_s)


def _clients(count: int, seed: int) -> tuple[WorkloadRow, ...]:
    """Clients of very different rates, each with its own lengths and burstiness: few send most, and some in bursts."""
    generator = np.random.default_rng([seed, 25])
    shares = 1.0 / np.arange(1, 31) ** 1.1
    counts = generator.multinomial(count, shares / shares.sum()).tolist()
    span_s = count / 4.0
    rows = []
    for number, mine in enumerate(counts):
        medians = np.exp(generator.normal((math.log(700), math.log(200)), (0.9, 0.8)))
        cv = float(np.exp(generator.normal(0.3, 0.5)))
        if mine:
            arrivals_s = gamma_arrivals(generator, count=mine, rate_rps=mine / span_s, cv=cv).tolist()
            prompt, answer = (lengths(max(4.0, median), max(8.0, 2.5 * median)) for median in medians.tolist())
            mine_made = _rows(generator, "served", prompt, answer, arrivals_s)
            rows += [replace(row, client=f"client-{number + 1}") for row in mine_made]
    return tuple(sorted(rows, key=lambda row: row.arrival_s or 0.0))


def _conversations(first: Lengths, turn: Lengths, answer: Lengths, *, rate_rps: float, number: int) -> Make:
    """Conversations whose prompts grow by each answer and question, with block hashes of what they share."""

    def rows(count: int, seed: int) -> tuple[WorkloadRow, ...]:
        generator = np.random.default_rng([seed, number])
        made: list[WorkloadRow] = []
        hashes = iter(range(1, 2**31))
        starts_s = gamma_arrivals(generator, count=count, rate_rps=rate_rps / _TURNS, cv=1.0).tolist()
        for session, start_s in enumerate(starts_s):
            turns = _turns(generator, (first, turn, answer), start_s, hashes)
            made += [replace(row, client=f"session-{session + 1}", session=f"session-{session + 1}") for row in turns]
            if len(made) > 2 * count:
                break
        return tuple(sorted(made, key=lambda row: row.arrival_s or 0.0)[:count])

    return rows


def _turns(
    generator: np.random.Generator, tokens_of: tuple[Lengths, Lengths, Lengths], start_s: float, hashes: Iterator[int]
) -> Iterator[WorkloadRow]:
    """The turns of a conversation, with tokens of the first prompt, of what each turn adds to it, and of an answer."""
    first, turn, answer = tokens_of
    shared: tuple[int, ...] = ()
    now_s, prompt = start_s, 0
    for _ in range(int(generator.geometric(1.0 / _TURNS))):
        prompt += int((turn if prompt else first).draw(generator, 1)[0])
        if prompt > _MOST_TOKENS:
            return
        tokens = int(answer.draw(generator, 1)[0])
        blocks = (*shared, *(next(hashes) for _ in range(len(shared), -(-prompt // PREFIX_BLOCK_TOKENS))))
        yield replace(_row("chat", prompt, tokens, now_s), block_hashes=blocks)
        shared = blocks[: prompt // PREFIX_BLOCK_TOKENS]
        prompt += tokens
        now_s += 0.03 * tokens + float(generator.exponential(30.0))


def _row(task: str, prompt_tokens: int, answer_tokens: int, arrival_s: float) -> WorkloadRow:
    return WorkloadRow(
        task=task,
        model="made",
        prompt=None,
        prompt_len_tokens=prompt_tokens,
        response_len_tokens=answer_tokens,
        arrival_s=arrival_s,
    )


def _built_in(name: str) -> Make:
    return lambda count, seed: BUILT_IN[name](0, count, seed)


_AZURE = "https://github.com/Azure/AzurePublicDataset (trace of 2023)"
_OWN = "this project: engine_adapter/workloads"

KINDS: dict[str, Kind] = {
    "azure-conv": Kind(
        about="conversation: prompts of 1,020 tokens in the median, answers of 129, 5.5 requests/s",
        source=_AZURE,
        make=_trace("conversation", lengths(1020, 4083), lengths(129, 451), rate_rps=5.5, cv=1.2, number=21),
    ),
    "azure-code": Kind(
        about="code completion: long prompts, answers of 13 tokens in the median, arrivals in heavy bursts",
        source=_AZURE,
        make=_trace("code", lengths(1500, 6800), lengths(13, 90), rate_rps=2.5, cv=13.0, number=22),
    ),
    "mooncake": Kind(
        about="long conversations with shared prefixes: prompts of about 7,000 tokens, answers of 350",
        source="https://github.com/kvcache-ai/Mooncake (conversation trace)",
        make=_conversations(lengths(2500, 20000), lengths(380, 4000), lengths(350, 698), rate_rps=3.4, number=23),
    ),
    "burstgpt": Kind(
        about="chat with short and long answers, in bursts",
        source="https://github.com/HPMLL/BurstGPT (shapes of the paper)",
        make=_trace(
            "chat",
            lengths(300, 2000),
            Mixture(parts=(lengths(20, 60), lengths(300, 750)), weights=(0.35, 0.65)),
            rate_rps=2.0,
            cv=3.0,
            number=24,
        ),
    ),
    "servegen": Kind(
        about="30 clients of very different rates, lengths and burstiness",
        source="https://github.com/alibaba/ServeGen (shapes of the paper)",
        make=_clients,
    ),
    "heavy-tail": Kind(
        about="one answer in twelve from a power law of infinite variance",
        source=_OWN,
        make=_trace(
            "reasoning",
            lengths(300, 1200),
            Mixture(parts=(lengths(240, 900), Pareto(least_tokens=800, alpha=1.3)), weights=(11, 1)),
            rate_rps=2.0,
            cv=1.0,
            number=26,
        ),
    ),
    "chat-sessions": Kind(
        about="conversations of about six turns that share what was said before",
        source=_OWN,
        make=_conversations(lengths(400, 1600), lengths(80, 400), lengths(180, 700), rate_rps=4.0, number=27),
    ),
    "prefix-4k-two": Kind(
        about="one of two prefixes of 4,096 tokens before a short question",
        source=_OWN,
        make=_built_in("prefix-4k-two"),
    ),
    "long-prompts": Kind(
        about="a prompt of 120,000 tokens each minute among short ones", source=_OWN, make=_built_in("long-prompts")
    ),
}
"""Every kind by its name."""
